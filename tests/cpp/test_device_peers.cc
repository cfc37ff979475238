// Device memory of one process that another one copies from, over the fake driver: lane cuda_ipc.
#include <dirent.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "devices.h"
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

// The fake driver's device memory are files of this process.
int device_memories() {
  DIR* folder = ::opendir("/proc/self/fd");
  int count = 0;
  while (const dirent* entry = ::readdir(folder)) {
    char target[256] = "";
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (::readlink(path.c_str(), target, sizeof target - 1) > 0) count += std::string(target).find("fake-cuda") != std::string::npos;
  }
  ::closedir(folder);
  return count;
}

}  // namespace

// LANE DEVICE COUNT: sends that many dicts, and leaves when all have been read.
ROLE(sender, arguments) {
  {
    const auto link = open_link(peer_options(endpoint("ipc"), "", lane_named(arguments[0]), std::stoi(arguments[1])));
    say(link->bound());
    try {
      send_from(*link, std::max(std::stoi(arguments[1]), 0), std::stoi(arguments[2]));
    } catch (const Error& e) {
      return say(e.what());
    }
    const auto lane = link->stats()["send_lane"];
    link->close(kLong_s);
    say("lane " + std::to_string(lane));
  }
  CHECK_EQUAL(device_memories(), 0);
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

void check_lane(const std::string& sending, const std::string& receiving, int from, int to, Lane wanted) {
  Child child("sender", {sending, std::to_string(from), std::to_string(kDicts)});
  const auto link = open_link(peer_options("", child.read_line(), lane_named(receiving), to));
  receive_on(*link, std::max(to, 0), kDicts);
  CHECK_EQUAL(child.read_line(), "lane " + std::to_string(static_cast<int>(wanted)));
  link->close(0);
  sweep_arrivals();
}

}  // namespace

TEST(tensors_go_from_device_to_device_where_the_receiver_can_open_the_senders_memory) {
  check_lane("auto", "auto", 0, 1, Lane::kDevice);
  check_lane("cuda_ipc", "cuda_ipc", 1, 1, Lane::kDevice);
  check_lane("auto", "auto", -1, 0, Lane::kDevice);  // the sender learns of devices with its first tensor
}

TEST(a_receiver_without_a_device_or_that_may_not_gets_them_through_the_segment) {
  check_lane("auto", "auto", 0, -1, Lane::kShared);
  check_lane("auto", "shm", 0, 0, Lane::kShared);
  check_lane("shm", "auto", 0, 0, Lane::kShared);
}

TEST(a_lane_that_was_asked_for_and_cannot_be_had_is_an_error_that_says_why) {
  Child child("sender", {"cuda_ipc", "0", "3"});
  const auto link = open_link(peer_options("", child.read_line(), LaneChoice::kShared, 0));
  CHECK_ERROR(Code::kPeerLost, receive(*link));
  CHECK(child.read_line().find("lane cuda_ipc was asked for: next has no device") != std::string::npos);
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
  check_lane("auto", "auto", 0, 0, Lane::kShared);
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
    CHECK_EQUAL(device_memories(), 0);
  }
}
