// Fixed-size chunks for outgoing frames, over a slab allocated when a link opens. It has more of them once it is pinned: a
// device fills them under the caller's computing, and the caller waits for as long as there are none to be filled.
//
// Owns: the slab. A Chunk returns itself when it dies, on whichever thread that is (libzmq's, usually).
// Blocks? pin, for about a millisecond for 4 MB. try_acquire never: it returns an empty Chunk, and `freed` is signalled when one comes back after that.
//   The sender waits in its poll loop, because it must go on watching its peer meanwhile.
// Thread: all safe. The pool must outlive its chunks: the link terminates the ZeroMQ context first.
// Errors: the constructor throws kResource; pin kPinned, and the pool is what it was before.
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
  // `pinned_count`: when a device fills them, if that is more.
  Pool(std::size_t chunk_bytes, std::size_t count, Event& freed, std::size_t pinned_count = 0);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void pin(device::Device& device);  // its memory, for copies by any device; once is enough
  void abandon() { abandoned_ = true; }  // a device that no longer answers may still write into it: it is never freed
  Chunk try_acquire();
  void give_back(std::uint8_t* bytes) noexcept;

  std::size_t chunk_bytes() const { return chunk_bytes_; }
  std::size_t count() const;
  std::size_t free_count() const;

 private:
  const std::size_t chunk_bytes_;
  const std::size_t slab_bytes_;
  std::uint8_t* slab_;
  Event& freed_;
  bool abandoned_ = false;
  mutable std::mutex mutex_;  // guards the following
  std::optional<device::Registered> pinned_;
  std::size_t count_;                // that it lends; once pinned, all that the slab holds
  std::vector<std::uint8_t*> free_;  // last in, first out: the warmest chunk is used next
  bool wanted_ = false;              // someone found it empty and waits for `freed_`
};

}  // namespace zmqpp::memory
