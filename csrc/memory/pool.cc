#include "memory/pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"

namespace zmqpp::memory {

Chunk::~Chunk() {
  if (pool_ != nullptr) pool_->give_back(bytes_);
}

Pool::Pool(std::size_t chunk_bytes, std::size_t count, Event& freed, std::size_t pinned_count)
    : chunk_bytes_(chunk_bytes), slab_bytes_(chunk_bytes * std::max(count, pinned_count)), freed_(freed), count_(count) {
  // Anonymous pages: a pool that is never used costs address space only.
  void* slab = ::mmap(nullptr, slab_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (slab == MAP_FAILED) {
    throw Error(Code::kResource, "open",
                "no memory for a pool of " + std::to_string(slab_bytes_) + " bytes: " + std::strerror(errno));
  }
  slab_ = static_cast<std::uint8_t*>(slab);
  free_.reserve(count);
  for (std::size_t i = count; i-- > 0;) free_.push_back(slab_ + i * chunk_bytes_);
}

Pool::~Pool() {
  if (abandoned_) {
    if (pinned_) pinned_->abandon();
    return;
  }
  pinned_.reset();
  ::munmap(slab_, slab_bytes_);
}

void Pool::pin(device::Device& device) {
  const std::lock_guard lock(mutex_);
  if (pinned_) return;
  // A fork would share the pages with its parent, whose next write moves them from under the device on older kernels.
  ::madvise(slab_, slab_bytes_, MADV_DONTFORK);
  pinned_.emplace(device, slab_, slab_bytes_);
  std::vector<std::uint8_t*> free;
  free.reserve(slab_bytes_ / chunk_bytes_);
  for (std::size_t i = slab_bytes_ / chunk_bytes_; i-- > count_;) free.push_back(slab_ + i * chunk_bytes_);
  free.insert(free.end(), free_.begin(), free_.end());
  free_.swap(free);
  count_ = slab_bytes_ / chunk_bytes_;
  if (std::exchange(wanted_, false)) freed_.signal();
}

Chunk Pool::try_acquire() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    wanted_ = true;
    return {};
  }
  std::uint8_t* bytes = free_.back();
  free_.pop_back();
  return Chunk(this, bytes);
}

void Pool::give_back(std::uint8_t* bytes) noexcept {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    free_.push_back(bytes);  // never reallocates: reserved for all of them
    wake = std::exchange(wanted_, false);
    // Inside the lock: the owner destroys the pool only after it took the last chunk back under this lock.
    if (wake) freed_.signal();
  }
}

std::size_t Pool::count() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

std::size_t Pool::free_count() const {
  const std::lock_guard lock(mutex_);
  return free_.size();
}

}  // namespace zmqpp::memory
