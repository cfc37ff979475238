// Device memory of one process that another one copies from, over the fake driver: lane cuda_ipc.
#include <csignal>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "devices.h"
#include "engine/retired_rings.h"
#include "process.h"

using namespace devices;  // NOLINT: a program
using process::Child;

namespace {

constexpr int kDicts = 60;
constexpr double kSoon_s = 10.0;

Options peer_options(const std::string& bind, const std::string& connect, LaneChoice lane, int device) {
  Options o = device_options(bind, connect, "shm", device);
  o.lane = lane;
  o.device_ring_bytes = 2u << 20;
  o.shm_bytes = 8u << 20;
  o.pinned_bytes = 8u << 20;
  return o;
}

LaneChoice lane_named(const std::string& name) {
  return name == "cuda_ipc" ? LaneChoice::kDevice : name == "shm" ? LaneChoice::kShared : LaneChoice::kAuto;
}

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

int early_frees() { return fake<int (*)()>("fake_early_frees")(); }

// Closes, tells how much device memory the receiver still has open, and then how often it was freed too early.
void leave(const std::shared_ptr<Link>& link, double linger_s) {
  link->close(linger_s);
  say("kept " + std::to_string(device_memories()));
  const Deadline deadline = Deadline::after(kLong_s);
  while (device_memories() > 0) {
    CHECK(!deadline.expired());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    sweep_rings();
  }
  say("early frees " + std::to_string(early_frees()));
}

}  // namespace

// LANE DEVICE COUNT: sends that many dicts, and leaves when all have been read, or when the receiver is gone.
ROLE(sender, arguments) {
  const auto link = open_link(peer_options(endpoint("ipc"), "", lane_named(arguments[0]), std::stoi(arguments[1])));
  say(link->bound());
  try {
    send_from(*link, std::max(std::stoi(arguments[1]), 0), std::stoi(arguments[2]));
    say("lane " + std::to_string(link->stats()["send_lane"]) + link->lane_reason());
  } catch (const Error& e) {
    say(e.what());
  }
  leave(link, kLong_s);
}

// Offers device memory to a receiver that never looks.
ROLE(offering, arguments) {
  const auto link = open_link(peer_options(endpoint("ipc"), "", LaneChoice::kAuto, 0));
  say(link->bound());
  CHECK(link->wait_send_peer(Deadline::after(kLong_s)));
  {
    const Memory memory(0, 64);
    Compute compute(0);
    CHECK(devices::send(*link, {memory.span()}, {{0, compute.handle()}}, 0)->wait_copied(Deadline::after(kLong_s)));
  }
  CHECK_EQUAL(device_memories(), 1);
  leave(link, 0);
}

// COUNT: sends one dict of that many small tensors, and leaves when they have been read.
ROLE(many, arguments) {
  const auto link = open_link(peer_options(endpoint("ipc"), "", LaneChoice::kAuto, 0));
  say(link->bound());
  const Memory memory(0, 64);
  Compute compute(0);
  for (std::uint64_t tag = 0; tag < 3; ++tag) {
    const std::vector<Span> payload(std::stoul(arguments[0]), memory.span());
    CHECK(devices::send(*link, payload, {{0, compute.handle()}}, tag)->wait_copied(Deadline::after(kLong_s)));
  }
  link->close(kLong_s);
}

// LANE WHERE: takes dicts until it is killed.
ROLE(receiver, arguments) {
  const auto link = open_link(peer_options("", arguments[1], lane_named(arguments[0]), 0));
  receive_on(*link, 0, 1'000'000);
}

namespace {

void check_lane(const std::string& sending, const std::string& receiving, int from, int to, Lane wanted,
                const std::string& reason = "", const std::string& reason_here = "") {
  Child child("sender", {sending, std::to_string(from), std::to_string(kDicts)});
  const auto link = open_link(peer_options("", child.read_line(), lane_named(receiving), to));
  receive_on(*link, std::max(to, 0), kDicts);
  CHECK_EQUAL(child.read_line(), "lane " + std::to_string(static_cast<int>(wanted)) + reason);
  CHECK_EQUAL(link->lane_reason(), reason_here);
  CHECK_EQUAL(child.read_line(), std::string("kept ") + (wanted == Lane::kDevice ? "1" : "0"));  // it is open here until now
  link->close(0);
  sweep_arrivals();
  CHECK_EQUAL(child.read_line(), "early frees 0");
}

}  // namespace

TEST(tensors_go_from_device_to_device_where_the_receiver_can_open_the_senders_memory) {
  check_lane("auto", "auto", 0, 1, Lane::kDevice);
  check_lane("cuda_ipc", "cuda_ipc", 1, 1, Lane::kDevice);
  check_lane("auto", "auto", -1, 0, Lane::kDevice);  // the sender learns of devices with its first tensor
}

TEST(a_receiver_without_a_device_or_that_may_not_gets_them_through_the_segment) {
  const std::string none = "it receives to no device of CUDA", told = "it was told to use shm";
  check_lane("auto", "auto", 0, -1, Lane::kShared, "not cuda_ipc: next: " + none, "not cuda_ipc: " + none);
  check_lane("auto", "shm", 0, 0, Lane::kShared, "not cuda_ipc: next: " + told, "not cuda_ipc: " + told);
  check_lane("shm", "auto", 0, 0, Lane::kShared);
}

TEST(a_lane_that_was_asked_for_and_cannot_be_had_is_an_error_that_says_why) {
  Child child("sender", {"cuda_ipc", "0", "3"});
  const auto link = open_link(peer_options("", child.read_line(), LaneChoice::kShared, 0));
  CHECK_ERROR(Code::kPeerLost, receive(*link));
  CHECK(child.read_line().find("lane cuda_ipc was asked for: next: it was told to use shm") != std::string::npos);
  link->close(0);
}

TEST(a_dict_of_more_tensors_than_a_table_holds_goes_through_the_segment) {
  for (const std::size_t count : {wire::kMaxRemoteParts, wire::kMaxRemoteParts + 1}) {
    Child child("many", {std::to_string(count)});
    const auto link = open_link(peer_options("", child.read_line(), LaneChoice::kAuto, 0));
    for (std::uint64_t tag = 0; tag < 3; ++tag) {
      const std::optional<Dict> dict = receive(*link);
      CHECK(dict && dict->tag == tag && dict->block->size() == count * 64);
      CHECK(dict->block->remote().size() <= wire::kMaxRemoteParts);
    }
    link->close(0);
  }
}

TEST(a_platform_that_shares_no_device_memory_uses_the_segment) {
  ::setenv("FAKE_CUDA_IPC", "0", 1);
  const std::string reason = "not cuda_ipc: sharing device memory with another process: CUDA_ERROR_FAKE: as the fake driver says";
  check_lane("auto", "auto", 0, 0, Lane::kShared, reason);
  ::unsetenv("FAKE_CUDA_IPC");
}

TEST(the_receiver_of_a_killed_sender_keeps_what_came_and_hears_of_the_loss) {
  pattern::Random random(check::seed());
  for (int round = 0; round < 4; ++round) {
    Child child("sender", {"cuda_ipc", "0", "1000000"});
    const auto link = open_link(peer_options("", child.read_line(), LaneChoice::kDevice, 0));
    Consumer consumer(0);
    std::thread killer([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(random.below(200'000)));
      child.kill();
    });
    std::uint64_t tag = 0;
    const Code code = until_error([&] {
      consumer.take(*link, tag);
      consumer.check(tag++);
    });
    CHECK(code == Code::kPeerLost);
    killer.join();
    link->close(0);
    sweep_arrivals();
    const Memory again(0, 1u << 20);  // the device still works
  }
}

TEST(the_sender_to_a_killed_receiver_gets_its_device_memory_back) {
  for (int round = 0; round < 4; ++round) {
    {
      const auto link = open_link(peer_options(endpoint("ipc", 100 + round), "", LaneChoice::kDevice, 0));
      Child child("receiver", {"cuda_ipc", link->bound()});
      std::thread killer([&] {
        while (link->stats()["send_lane"] != static_cast<std::uint64_t>(Lane::kDevice)) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(5 * round));
        child.kill();
      });
      CHECK(until_error([&] { send_from(*link, 0, 1000); }) == Code::kPeerLost);
      killer.join();
      link->close(0);
    }
    CHECK(device_memories() > 0);  // the system may still be taking the dead one's mappings apart
    const Deadline deadline = Deadline::after(kLong_s);
    while (device_memories() > 0 && !deadline.expired()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      sweep_rings();
    }
    CHECK_EQUAL(device_memories(), 0);
    CHECK_EQUAL(early_frees(), 0);
  }
}

// Its word counts, not its end: a process that was forked from it keeps its locks.
TEST(device_memory_stays_until_the_receiver_has_let_go_of_the_last_tensor) {
  Child child("sender", {"cuda_ipc", "0", "1000000"});
  std::optional<Dict> dict;
  {
    const auto link = open_link(peer_options("", child.read_line(), LaneChoice::kDevice, 0));
    dict = receive(*link);
    CHECK(dict && !dict->block->remote().empty());
    link->close(0);
  }
  CHECK(child.read_line().find("next") != std::string::npos);  // the loss
  CHECK_EQUAL(child.read_line(), "kept 1");
  const pid_t forked = ::fork();
  if (forked == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (true) ::pause();
  }
  dict.reset();
  CHECK_EQUAL(child.read_line(), "early frees 0");
  ::kill(forked, SIGKILL);
  ::waitpid(forked, nullptr, 0);
}

TEST(device_memory_that_nobody_has_opened_is_freed_at_once) {
  Child child("offering", {});
  const auto link = open_link(peer_options("", child.read_line(), LaneChoice::kAuto, 0));
  CHECK_EQUAL(child.read_line(), "kept 0");
  CHECK_EQUAL(child.read_line(), "early frees 0");
  link->close(0);
}
