// A shared segment's file: its name, its two mappings, and what a killed maker leaves; and who gets which part of it.
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "check.h"
#include "memory/arena.h"
#include "memory/segment.h"
#include "pattern.h"
#include "process.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::memory;  // NOLINT

namespace {

constexpr std::size_t kSize = 64u << 10;

std::string path_of(const std::string& name) { return "/dev/shm/" + name; }
bool exists(const std::string& name) { return ::access(path_of(name).c_str(), F_OK) == 0; }

// What an arena must do, by a map of every grain.
struct Model {
  std::vector<bool> used;
  std::map<std::uint64_t, std::uint64_t> taken;  // offset: size as asked

  static std::size_t grains(std::uint64_t size) { return std::max(Arena::rounded(size), Arena::kGrain) / Arena::kGrain; }

  std::size_t longest_free() const {
    std::size_t longest = 0, run = 0;
    for (const bool is_used : used) longest = std::max(longest, run = is_used ? 0 : run + 1);
    return longest;
  }

  void take(std::uint64_t offset, std::uint64_t size) {
    CHECK_EQUAL(offset % Arena::kGrain, 0u);
    const std::size_t first = offset / Arena::kGrain;
    for (std::size_t i = first; i < first + grains(size); ++i) {
      CHECK(i < used.size() && !used[i]);
      used[i] = true;
    }
    taken[offset] = size;
  }

  void give_back(std::map<std::uint64_t, std::uint64_t>::iterator what) {
    const std::size_t first = what->first / Arena::kGrain;
    for (std::size_t i = first; i < first + grains(what->second) && i < used.size(); ++i) used[i] = false;
    taken.erase(what);
  }
};

void take_or_give(Arena& arena, Model& model, pattern::Random& random) {
  if (random.below(5) < 3) {
    const std::uint64_t size = random.below(random.one_in(8) ? 20'000 : 1000);
    const bool fits = model.longest_free() >= Model::grains(size);
    const auto offset = arena.take(size);
    CHECK_EQUAL(offset.has_value(), fits);
    if (offset) model.take(*offset, size);
  } else if (!model.taken.empty()) {
    const auto what = std::next(model.taken.begin(), static_cast<std::ptrdiff_t>(random.below(model.taken.size())));
    arena.give_back(what->first, what->second);
    model.give_back(what);
  }
  CHECK_EQUAL(arena.largest(), model.longest_free() * Arena::kGrain);
}

}  // namespace

// Makes one, says its name and waits to be killed.
ROLE(maker, arguments) {
  static_cast<void>(arguments);
  const Segment segment = Segment::create(kSize, kSize);
  std::printf("%s\n", segment.name().c_str());
  std::fflush(stdout);
  ::pause();
}

TEST(arena_does_what_its_model_does) {
  for (int round = 0; round < 10; ++round) {
    pattern::Random random(check::seed() + round);
    Arena arena(kSize + 77, 1024);
    CHECK_EQUAL(arena.bytes(), kSize);
    Model model{.used = std::vector<bool>(kSize / Arena::kGrain)};
    for (int i = 0; i < 600; ++i) take_or_give(arena, model, random);
    const std::uint64_t less = random.below(kSize);
    arena.shrink(less);
    CHECK_EQUAL(arena.bytes(), less / Arena::kGrain * Arena::kGrain);
    model.used.resize(less / Arena::kGrain);
    for (int i = 0; i < 600; ++i) take_or_give(arena, model, random);
    while (!model.taken.empty()) {
      arena.give_back(model.taken.begin()->first, model.taken.begin()->second);
      model.give_back(model.taken.begin());
    }
    CHECK_EQUAL(arena.largest(), arena.bytes());
  }
}

TEST(arena_gives_different_places_even_for_nothing) {
  Arena arena(2 * Arena::kGrain, 2);
  const auto first = arena.take(0), second = arena.take(0);
  CHECK(first && second && *first != *second && !arena.take(0));
}

TEST(both_mappings_of_a_segment_are_one_memory) {
  Segment made = Segment::create(kSize, 4096);
  CHECK(exists(made.name()) && made.size() == kSize);
  const Segment opened = Segment::open(made.name(), kSize);
  CHECK(made.commit(4096, kSize - 4096));
  std::memset(made.bytes(), 0x5a, kSize);
  CHECK_EQUAL(int{opened.bytes()[kSize - 1]}, 0x5a);
  opened.bytes()[0] = 1;
  CHECK_EQUAL(int{made.bytes()[0]}, 1);
}

TEST(name_goes_with_its_maker_and_the_memory_stays) {
  std::string name;
  {
    const Segment made = Segment::create(kSize, kSize);
    name = made.name();
    { const Segment opened = Segment::open(name, kSize); }
    CHECK(exists(name));  // the other side leaves it alone unless told
    made.bytes()[7] = 7;
    const Segment opened = Segment::open(name, kSize);
    Segment moved = Segment::open(name, kSize);
    moved.unlink_name();
    moved.unlink_name();
    CHECK(!exists(name));
    CHECK_EQUAL(int{opened.bytes()[7]}, 7);
  }
  { name = Segment::create(kSize, kSize).name(); }
  CHECK(!exists(name));
}

TEST(segment_refuses_names_and_files_that_are_none) {
  for (const std::string name : {"", "zmqpp", "zmqpp-../../etc/passwd", "../zmqpp-1", "zmqpp-a b", "other-1"}) {
    CHECK_ERROR(Code::kSharedMemory, Segment::open(name, kSize));
  }
  CHECK_ERROR(Code::kSharedMemory, Segment::open("zmqpp-0-there-is-none", kSize));
  const Segment made = Segment::create(kSize, kSize);
  for (const std::size_t size : {std::size_t{0}, kSize - 1, kSize + 1, 2 * kSize}) {
    CHECK_ERROR(Code::kSharedMemory, Segment::open(made.name(), size));
  }
}

TEST(segment_beyond_the_machine_is_refused) {
  struct statvfs folder {};
  CHECK_EQUAL(::statvfs("/dev/shm", &folder), 0);
  const std::size_t most = folder.f_blocks * folder.f_frsize;
  CHECK_ERROR(Code::kSharedMemory, Segment::create(4 * most, 2 * most));
  Segment made = Segment::create(4 * most, kSize);  // address space only
  CHECK(!made.commit(kSize, 2 * most));
  CHECK(made.commit(kSize, kSize));
}

TEST(names_of_killed_makers_are_removed_and_others_kept) {
  process::Child killed("maker", {}), living("maker", {});
  const std::string dead = killed.read_line(), alive = living.read_line();
  const Segment own = Segment::create(kSize, kSize);
  remove_dead_segments();
  CHECK(exists(dead) && exists(alive) && exists(own.name()));
  killed.kill();
  remove_dead_segments();
  CHECK(!exists(dead) && exists(alive) && exists(own.name()));
  living.kill();
  remove_dead_segments();
  CHECK(!exists(alive) && exists(own.name()));
}

TEST(boot_id_is_the_same_each_time) { CHECK_EQUAL(boot_id(), boot_id()); }
