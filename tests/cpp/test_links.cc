// Two links in one process: random dicts over tcp and Unix sockets, every byte checked.
#include <dirent.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/frame.h"
#include "links.h"
#include "net/socket.h"
#include "wire/head.h"

using namespace links;  // NOLINT: a program

namespace {

constexpr int kSenders = 3;
const std::string kManifest = "\x91\xc0";

int open_descriptors() {
  DIR* folder = ::opendir("/proc/self/fd");
  int count = 0;
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

void send_some(Link& link, int thread, int count) {
  for (int i = 0; i < count; ++i) {
    CHECK(send(link, Content(tag_of(thread, i))));
    if (i % 3 == 0) send_control(link, tag_of(thread, i), i % 2 ? 10 : 10'000);
  }
}

void traffic(const std::string& scheme, int dicts) {
  const Pair pair(scheme);
  std::vector<std::thread> threads;
  for (int id = 0; id < kSenders; ++id) threads.emplace_back([&, id] { send_some(*pair.sender, id, dicts); });
  threads.emplace_back([&] {
    for (int i = 0; i < kSenders * ((dicts + 2) / 3); ++i) {
      const std::optional<Control> control = pair.receiver->inbox()->take_control(Deadline::after(kLong_s));
      CHECK(control);
      net::Message frame = std::move(const_cast<Control&>(*control).frame);
      CHECK(pattern::matches(control->tag, body_of(frame), body_size(frame)));
    }
  });
  Arrivals order;
  while (order.count() < std::uint64_t(kSenders) * dicts) order.take(*receive(*pair.receiver));
  for (std::thread& thread : threads) thread.join();
  pair.close();
  CHECK_EQUAL(pair.receiver->stats()["dicts_received"], order.count());
}

void cut_off_some(const std::string& scheme) {
  const Pair pair(scheme);
  pair.wait_peers();
  std::atomic<bool> over{false};
  std::thread sending([&] {
    pattern::Random random(check::seed());
    for (int i = 0; i < 150; ++i) send(*pair.sender, Content(i), random.one_in(2) ? 0.0002 * random.below(20) : kLong_s);
    over = true;
  });
  std::uint64_t arrived = 0;
  while (true) {
    const bool last = over;  // read first: what was sent before it was set is still to come
    const std::optional<Dict> dict = receive(*pair.receiver, 0.3);
    if (dict) Content(dict->tag).check(*dict), ++arrived;
    if (!dict && last) break;
  }
  sending.join();
  CHECK(arrived > 0 && !pair.sender->send_error() && !pair.receiver->receive_error());
  pair.close();
}

}  // namespace

TEST(random_dicts_of_several_threads_arrive_whole_and_in_order) {
  for (const std::string& scheme : kSchemes) traffic(scheme, 40);
}

TEST(dicts_go_both_ways_at_once) {
  for (const std::string& scheme : kSchemes) {
    const Pair there(scheme, 1), back(scheme, 2);
    std::thread echo([&] {
      for (int i = 0; i < 40; ++i) {
        Content(i).check(*receive(*there.receiver));
        CHECK(send(*back.sender, Content(1000 + i)));
      }
    });
    std::thread caller([&] {
      for (int i = 0; i < 40; ++i) CHECK(send(*there.sender, Content(i)));
    });
    for (int i = 0; i < 40; ++i) Content(1000 + i).check(*receive(*back.receiver));
    echo.join();
    caller.join();
    there.close();
    back.close();
  }
}

TEST(tickets_posted_ahead_get_the_dicts_in_order) {
  for (const std::string& scheme : kSchemes) {
    const Pair pair(scheme);
    std::vector<RecvTicketPtr> tickets;
    for (int i = 0; i < 30; ++i) tickets.push_back(pair.receiver->inbox()->post());
    std::thread sending([&] {
      for (int i = 0; i < 30; ++i) CHECK(send(*pair.sender, Content(i)));
    });
    for (int i = 0; i < 30; ++i) Content(i).check(*pair.receiver->inbox()->wait(tickets[i], Deadline::after(kLong_s)));
    sending.join();
    pair.close();
  }
}

TEST(dicts_cut_off_by_their_deadline_leave_the_others_whole) {
  for (const std::string& scheme : kSchemes) cut_off_some(scheme);
}

TEST(small_dict_that_was_copied_has_no_deadline_any_more) {
  const auto sender = open_link(options(endpoint("tcp"), ""));
  const std::vector<std::uint8_t> source = pattern::bytes(1, 100);
  CHECK(sender->reserve(200, Deadline::after(kLong_s)));
  const auto ticket = sender->send_dict({span_of(kManifest), {source.data(), source.size()}},
                                        {.tag = 5, .deadline = Deadline::after(0)});
  CHECK(ticket->is_copied());
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto receiver = open_link(options("", sender->bound()));
  CHECK_EQUAL(receive(*receiver)->tag, 5u);
  sender->close(kLong_s);
  receiver->close(0);
}

TEST(queue_is_empty_again_after_sent_cancelled_and_expired_dicts) {
  const Pair pair("tcp");
  pair.wait_peers();
  std::thread receiving([&] { until_error([&] { receive(*pair.receiver); }); });
  for (int i = 0; i < 60; ++i) send(*pair.sender, Content(i), i % 3 ? kLong_s : 1e-4 * (i % 7));
  CHECK(send(*pair.sender, Content(60)));
  const std::size_t limit = pair.sender->options().queue_bytes;
  CHECK(pair.sender->reserve(1, Deadline::after(5)));
  CHECK(pair.sender->reserve(limit - 1, Deadline::after(5)));  // fits when the first is all there is
  pair.close();
  receiving.join();
}

TEST(waiting_for_room_ends_when_the_link_closes) {
  const auto link = open_link(options(endpoint("tcp"), ""));
  CHECK(link->reserve(link->options().queue_bytes, Deadline::after(0)));
  std::thread waiter([&] { CHECK_ERROR(Code::kClosed, link->reserve(1, Deadline::after(kLong_s))); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  link->close(0);
  waiter.join();
}

TEST(gaps_between_the_parts_of_a_message_are_zeros) {
  const auto link = open_link(options(endpoint("tcp"), ""));
  net::Context context(1);
  net::Socket socket(context, net::kPull);
  socket.set(net::kLinger, 0);
  socket.connect(link->bound());
  CHECK(send(*link, Content(0)));  // memory that was used before
  const std::vector<std::uint8_t> source(5, 0xff);
  CHECK(link->reserve(200, Deadline::after(kLong_s)));
  link->send_dict({span_of(kManifest), {source.data(), 5}, {source.data(), 1}}, {.tag = 7});
  net::Message frame;
  do {
    net::PollItem item{socket.raw(), 0, net::kPollIn, 0};
    net::poll(&item, 1, 30'000);
    CHECK(socket.try_receive(frame));
  } while (wire::read_head(frame.bytes(), frame.size(), {}).tag != 7);
  const std::uint8_t* body = body_of(frame);
  CHECK_EQUAL(body_size(frame), 3 * kAlign);
  CHECK(pattern::all_zero(body + 6, kAlign - 6));  // behind size and manifest
  CHECK(pattern::all_zero(body + kAlign + 5, kAlign - 5) && pattern::all_zero(body + 2 * kAlign + 1, kAlign - 1));
  link->close(0);
}

TEST(closing_twice_and_from_several_threads_is_harmless) {
  for (const std::string& scheme : kSchemes) {
    const Pair pair(scheme);
    pair.wait_peers();
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([&] { pair.close(); });
    for (std::thread& thread : threads) thread.join();
    pair.close();
    CHECK(pair.sender->is_closed() && pair.receiver->is_closed());
    CHECK_ERROR(Code::kClosed, send_control(*pair.sender, 1, 1));
    CHECK_ERROR(Code::kPeerClosed, receive(*pair.receiver));  // the goodbye came first
  }
}

TEST(closed_links_leave_no_descriptor) {
  for (const std::string& scheme : kSchemes) traffic(scheme, 2);  // what libzmq and the runtime open once is open now
  const int before = open_descriptors();
  for (const std::string& scheme : kSchemes) traffic(scheme, 5);
  CHECK_EQUAL(open_descriptors(), before);
}
