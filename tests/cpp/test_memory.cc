// Chunks of a pool, and the blocks that received dicts lie in.
#include <poll.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/align.h"
#include "check.h"
#include "memory/pool.h"
#include "memory/receive_block.h"
#include "pattern.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::memory;  // NOLINT

namespace {

constexpr std::size_t kChunk = 4096;
constexpr std::size_t kMib = 1u << 20;

bool is_signalled(Event& event) {
  pollfd item{event.fd(), POLLIN, 0};
  const bool ready = ::poll(&item, 1, 0) == 1;
  event.drain();
  return ready;
}

std::vector<Chunk> take_all(Pool& pool) {
  std::vector<Chunk> held;
  while (Chunk chunk = pool.try_acquire()) held.push_back(std::move(chunk));
  return held;
}

}  // namespace

TEST(pool_hands_out_each_chunk_once) {
  Event freed;
  Pool pool(kChunk, 5, freed);
  std::vector<Chunk> held = take_all(pool);
  CHECK_EQUAL(held.size(), 5u);
  CHECK_EQUAL(pool.free_count(), 0u);
  std::vector<std::uint8_t*> places;
  for (Chunk& chunk : held) {
    std::memset(chunk.bytes(), 0x5a, kChunk);  // all of it is there
    places.push_back(chunk.bytes());
  }
  std::sort(places.begin(), places.end());
  for (std::size_t i = 1; i < places.size(); ++i) CHECK(places[i] >= places[i - 1] + kChunk);
  held.clear();
  CHECK_EQUAL(pool.free_count(), 5u);
}

TEST(pool_signals_only_who_found_it_empty) {
  Event freed;
  Pool pool(kChunk, 2, freed);
  { const Chunk chunk = pool.try_acquire(); }
  CHECK(!is_signalled(freed));
  std::vector<Chunk> held = take_all(pool);  // its last attempt finds nothing
  held.pop_back();
  CHECK(is_signalled(freed));
  held.pop_back();
  CHECK(!is_signalled(freed));
}

TEST(chunk_moves_and_is_given_back_once) {
  Event freed;
  Pool pool(kChunk, 1, freed);
  Chunk first = pool.try_acquire();
  Chunk second = std::move(first);
  CHECK(!first && second);  // NOLINT: a moved-from chunk is empty
  const auto [owner, bytes] = second.release();
  CHECK(!second && pool.free_count() == 0);
  owner->give_back(bytes);
  CHECK_EQUAL(pool.free_count(), 1u);
}

TEST(pool_serves_several_threads) {
  Event freed;
  Pool pool(kChunk, 3, freed);
  std::vector<std::thread> threads;
  for (int id = 1; id <= 4; ++id) {
    threads.emplace_back([&pool, id] {
      for (int i = 0; i < 2000; ++i) {
        const Chunk chunk = pool.try_acquire();
        if (!chunk) continue;
        std::memset(chunk.bytes(), id, 64);
        CHECK(std::all_of(chunk.bytes(), chunk.bytes() + 64, [id](int byte) { return byte == id; }));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(pool.free_count(), 3u);
}

TEST(size_classes_hold_their_sizes_and_waste_at_most_a_quarter) {
  pattern::Random random(check::seed());
  std::vector<std::size_t> sizes{0, 1, 63, 64, 65};
  for (std::size_t power = 10; power < 40; ++power) {
    for (const std::ptrdiff_t by : {-65, -64, -1, 0, 1, 64, 65}) sizes.push_back((std::size_t{1} << power) + by);
    sizes.push_back((std::size_t{1} << power) + random.below(std::size_t{1} << power));
  }
  for (const std::size_t size : sizes) {
    const std::size_t capacity = size_class(size);
    CHECK(capacity >= std::max<std::size_t>(size, 1));
    CHECK_EQUAL(capacity % kAlign, 0u);
    CHECK(capacity - size <= std::max<std::size_t>(size / 4 + 1, 256));  // the smallest class
    CHECK_EQUAL(size_class(capacity), capacity);
    CHECK(size_class(size + 1) >= capacity);
  }
}

TEST(block_is_aligned_and_as_large_as_asked) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, 64 * kAlign, 65 * 1024 + std::size_t{1}, 3 * kMib}) {
    const auto block = ReceiveBlock::make(size);
    CHECK_EQUAL(block->size(), size);
    CHECK_EQUAL(reinterpret_cast<std::uintptr_t>(block->bytes()) % kAlign, 0u);
    std::memset(block->bytes(), 1, size);
  }
}

TEST(blocks_are_used_again_by_their_size_class) {
  for (const std::size_t size : {std::size_t{1000}, kMib}) {
    drop_cached_receive_blocks();
    const std::uint8_t* place = ReceiveBlock::make(size)->bytes();
    CHECK_EQUAL(cached_receive_bytes(), size_class(size));
    const std::uint64_t allocations = receive_allocations();
    const auto again = ReceiveBlock::make(size - 20);  // of the same class
    CHECK(again->bytes() == place && receive_allocations() == allocations);
    CHECK_EQUAL(cached_receive_bytes(), 0u);
    const auto other = ReceiveBlock::make(size - 20);  // while that one is held
    CHECK(other->bytes() != place && receive_allocations() == allocations + 1);
  }
}

TEST(cache_of_blocks_has_a_limit_and_can_be_dropped) {
  drop_cached_receive_blocks();
  std::vector<std::shared_ptr<ReceiveBlock>> held;
  for (int i = 0; i < 20; ++i) held.push_back(ReceiveBlock::make(32 * kMib));  // 640 MiB, never touched
  held.clear();
  CHECK(cached_receive_bytes() > 0 && cached_receive_bytes() <= 512 * kMib);
  drop_cached_receive_blocks();
  CHECK_EQUAL(cached_receive_bytes(), 0u);
}

TEST(a_full_cache_takes_blocks_of_other_sizes_in_the_place_of_those_unused_for_longest) {
  drop_cached_receive_blocks();
  std::vector<std::shared_ptr<ReceiveBlock>> held;
  for (int i = 0; i < 16; ++i) held.push_back(ReceiveBlock::make(32 * kMib));  // all there is room for
  held.clear();
  CHECK_EQUAL(cached_receive_bytes(), 512 * kMib);
  for (const std::size_t size : {std::size_t{1000}, kMib, 100 * kMib}) {
    ReceiveBlock::make(size);
    const std::uint64_t allocations = receive_allocations();
    ReceiveBlock::make(size);
    CHECK_EQUAL(receive_allocations(), allocations);
    CHECK(cached_receive_bytes() <= 512 * kMib);
  }
  CHECK(cached_receive_bytes() > 384 * kMib);
  const std::uint64_t allocations = receive_allocations();
  ReceiveBlock::make(32 * kMib);  // those that are left are of use
  CHECK_EQUAL(receive_allocations(), allocations);
  ReceiveBlock::make(600 * kMib);  // never kept, and nothing goes for it
  CHECK(cached_receive_bytes() > 384 * kMib);
  drop_cached_receive_blocks();
  CHECK_EQUAL(cached_receive_bytes(), 0u);
}

TEST(blocks_may_be_made_and_dropped_by_any_thread) {
  std::vector<std::thread> threads;
  for (int id = 0; id < 4; ++id) {
    threads.emplace_back([id] {
      pattern::Random random(check::seed() + id);
      std::vector<std::shared_ptr<ReceiveBlock>> held(4);
      for (int i = 0; i < 400; ++i) {
        auto block = ReceiveBlock::make((65 + random.below(200)) << 10);
        block->bytes()[block->size() - 1] = static_cast<std::uint8_t>(id);
        held[random.below(held.size())] = std::move(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  drop_cached_receive_blocks();
}
