// The process at the other end is killed at any point of a transfer: a named error, soon, and nothing wrong before it.
#include <cstdio>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "check.h"
#include "links.h"
#include "process.h"

using namespace links;  // NOLINT: a program
using process::Child;

namespace {

constexpr double kSoon_s = 10.0;  // a broken connection shows at once; this is for a busy machine

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void kill_after(Child& child, double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  child.kill();
}

template <typename Body>
void check_lost_soon(Body body) {
  CHECK(until_error(body) == Code::kPeerLost);
}

}  // namespace

// Binds where it is told, and sends dicts 0, 1, 2, … until it is killed.
ROLE(sender, arguments) {
  const auto link = open_link(options(arguments[1], "", lane_of(arguments[0])));
  say(link->bound());
  for (std::uint64_t tag = 0;; ++tag) send(*link, Content(tag));
}

// Takes dicts until it is killed, saying each one's tag.
ROLE(receiver, arguments) {
  const auto link = open_link(options("", arguments[1], lane_of(arguments[0])));
  while (true) {
    const std::optional<Dict> dict = receive(*link);
    Content(dict->tag).check(*dict);
    say(std::to_string(dict->tag));
  }
}

TEST(receiver_of_a_killed_sender_keeps_what_came_and_hears_of_the_loss) {
  pattern::Random random(check::seed());
  for (int round = 0; round < 9; ++round) {
    // The path is that of the last round: who was killed there does not keep it.
    const std::string& scheme = kSchemes[round % kSchemes.size()];
    Child child("sender", {scheme, endpoint(scheme)});
    const auto link = open_link(options("", child.read_line(), lane_of(scheme)));
    Content(0).check(*receive(*link));
    std::thread killer([&] { kill_after(child, 1e-5 * random.below(5000)); });
    std::uint64_t tag = 1;
    check_lost_soon([&] { Content(tag++).check(*receive(*link, kSoon_s)); });
    CHECK_ERROR(Code::kPeerLost, link->inbox()->take_control(Deadline::after(kSoon_s)));
    killer.join();
    link->close(0);
  }
  ::unlink(endpoint("ipc").substr(6).c_str());
}

TEST(sender_to_a_killed_receiver_fails_every_ticket) {
  pattern::Random random(check::seed() + 1);
  for (int round = 0; round < 9; ++round) {
    const std::string& scheme = kSchemes[round % kSchemes.size()];
    const auto link = open_link(options(endpoint(scheme, round), "", lane_of(scheme)));
    Child child("receiver", {scheme, link->bound()});
    std::vector<std::thread> threads;
    for (int id = 0; id < 3; ++id) {
      threads.emplace_back([&, id] {
        std::uint64_t number = 0;
        check_lost_soon([&] { send(*link, Content((std::uint64_t(id) << 32) | number++)); });
      });
    }
    CHECK(!child.read_line().empty());
    kill_after(child, 1e-5 * random.below(5000));
    for (std::thread& thread : threads) thread.join();
    CHECK(link->send_error()->code() == Code::kPeerLost);
    CHECK_ERROR(Code::kPeerLost, link->wait_send_peer(Deadline::after(kSoon_s)));
    link->close(kLong_s);  // returns at once: there is nobody to wait for
  }
}

namespace {

void fill_up(const std::string& scheme) {
  const auto link = open_link(options(endpoint(scheme, 100), "", lane_of(scheme)));
  Child child("receiver", {scheme, link->bound()});
  CHECK(send(*link, Content(1)));
  CHECK_EQUAL(child.read_line(), "1");
  child.signal(SIGSTOP);
  const std::vector<std::uint8_t> large(1u << 20, 3);  // more than all buffers on the way, in the end
  const std::string manifest = "\x91\xc0";
  const std::vector<Span> body{span_of(manifest), {large.data(), large.size()}};
  std::vector<SendTicketPtr> tickets;
  for (int i = 0; i < 100 && link->reserve(link->reservation(body), Deadline::after(0.3)); ++i) {
    tickets.push_back(link->send_dict(body, {.deadline = Deadline::after(kLong_s)}));
  }
  CHECK(tickets.size() < 50);
  child.kill();
  CHECK_ERROR(Code::kPeerLost, tickets.back()->wait_sent(Deadline::after(kSoon_s)));
  link->close(0);
}

}  // namespace

TEST(stopped_receiver_makes_the_sender_wait_and_not_grow) {
  for (const std::string& scheme : kSchemes) fill_up(scheme);
}
