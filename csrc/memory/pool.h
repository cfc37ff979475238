// Fixed-size chunks for outgoing frames, over slabs allocated when a link opens.
//
// Owns: the slabs. A Chunk returns itself when it dies, on whichever thread that is (libzmq's, usually).
// Blocks? never: try_acquire returns an empty Chunk, and `freed` is signalled when one comes back after that.
//   The sender waits in its poll loop, because it must go on watching its peer meanwhile.
// Thread: all safe. The pool must outlive its chunks: the link terminates the ZeroMQ context first.
// Errors: the constructor throws kResource, pin kPinned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/event.h"
#include "device/pinned.h"

namespace zmqpp::memory {

class Pool;

class Chunk {
 public:
  Chunk() = default;
  Chunk(Chunk&& other) noexcept { *this = std::move(other); }
  Chunk& operator=(Chunk&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Chunk();

  explicit operator bool() const { return bytes_ != nullptr; }
  std::uint8_t* bytes() const { return bytes_; }

  // For a C callback that frees by pointers: gives up ownership; Pool::give_back takes it again.
  std::pair<Pool*, std::uint8_t*> release() noexcept {
    return {std::exchange(pool_, nullptr), std::exchange(bytes_, nullptr)};
  }

 private:
  friend class Pool;
  Chunk(Pool* pool, std::uint8_t* bytes) : pool_(pool), bytes_(bytes) {}
  Pool* pool_ = nullptr;
  std::uint8_t* bytes_ = nullptr;
};

class Pool {
 public:
  Pool(std::size_t chunk_bytes, std::size_t count, Event& freed);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void pin(device::Device& device);  // its memory, for copies by any device; once is enough. Blocks for a moment
  void abandon() { abandoned_ = true; }  // a device that no longer answers may still write into it: it is never freed
  Chunk try_acquire();
  void give_back(std::uint8_t* bytes) noexcept;

  std::size_t chunk_bytes() const { return chunk_bytes_; }
  std::size_t count() const { return slab_bytes_ / chunk_bytes_; }
  std::size_t free_count() const;

 private:
  const std::size_t chunk_bytes_;
  const std::size_t slab_bytes_;
  std::uint8_t* slab_;
  Event& freed_;
  std::optional<device::Registered> pinned_;
  bool abandoned_ = false;
  mutable std::mutex mutex_;
  std::vector<std::uint8_t*> free_;  // last in, first out: the warmest chunk is used next
  bool wanted_ = false;              // someone found it empty and waits for `freed_`
};

}  // namespace zmqpp::memory
