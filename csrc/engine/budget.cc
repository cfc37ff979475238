#include "engine/budget.h"

#include <cstdlib>
#include <new>

#include "base/duration.h"
#include "wire/constants.h"

namespace zmqpp::engine {
namespace {

constexpr std::size_t kSmallBody = 4096;  // 256 of them (the send high-water mark) are 1 MiB: not worth tracking

// Lies in front of the bytes of a large body.
struct Lease {
  Budget* budget;
  std::size_t bytes;
  memory::Pool* pool;  // null: from the heap
};
static_assert(sizeof(Lease) <= kFrameFront);

void end_lease(void*, void* hint) {
  const Lease lease = *static_cast<Lease*>(hint);
  if (lease.pool != nullptr) {
    lease.pool->give_back(static_cast<std::uint8_t*>(hint));
  } else {
    std::free(hint);
  }
  lease.budget->release(lease.bytes, 0);
}

std::uint8_t* from_heap(std::size_t size, Stats& stats) {
  add(stats.allocations);
  return static_cast<std::uint8_t*>(std::malloc(size));
}

}  // namespace

bool Budget::acquire(std::size_t bytes, const Deadline& slice) {
  std::unique_lock lock(mutex_);
  const auto room = [&] {
    return error_ || items_ == 0 || (items_ < max_items_ && bytes_ + bytes <= max_bytes_);
  };
  if (!freed_.wait_until(lock, slice.at(), room)) return false;
  if (error_) throw *error_;
  bytes_ += bytes;
  ++items_;
  return true;
}

void Budget::take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  bytes_ += bytes;
  ++items_;
}

void Budget::release(std::size_t bytes, std::size_t items) noexcept {
  const std::lock_guard lock(mutex_);
  bytes_ -= bytes;
  items_ -= items;
  freed_.notify_all();
}

void Budget::fail(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = error;
  freed_.notify_all();
}

void Budget::revive() {
  const std::lock_guard lock(mutex_);
  error_.reset();
}

Error Budget::timeout_error(double waited_s) const {
  const std::lock_guard lock(mutex_);
  return Error(Code::kPoolTimeout, "send",
               "the send queue stayed full for " + seconds_text(waited_s) + ": it holds " +
                   std::to_string(items_) + " messages, " + std::to_string(bytes_) + " of " +
                   std::to_string(max_bytes_) + " bytes");
}

BudgetedFrame make_frame(std::size_t size, Budget& budget, memory::Pool& pool, Stats& stats) {
  const std::size_t frame_size = wire::kHeadSize + size;
  if (size <= kSmallBody) return {net::Message(frame_size), size};
  const std::size_t needed = kFrameFront + frame_size;
  memory::Chunk chunk = needed <= pool.chunk_bytes() ? pool.try_acquire() : memory::Chunk();
  memory::Pool* const owner = chunk ? &pool : nullptr;
  std::uint8_t* memory = chunk ? chunk.release().second : from_heap(needed, stats);
  if (memory == nullptr) {
    budget.release(size, 1);
    throw Error(Code::kResource, "send", "no memory for a message of " + std::to_string(size) + " bytes");
  }
  auto* lease = new (memory) Lease{&budget, size, owner};
  return {net::Message(memory + kFrameFront, frame_size, end_lease, lease), 0};
}

}  // namespace zmqpp::engine
