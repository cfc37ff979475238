#include "memory/receive_block.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/align.h"
#include "base/error.h"

namespace zmqpp::memory {
namespace {

constexpr std::size_t kMappedFrom = 64u << 10;     // below, malloc reuses memory well by itself
constexpr std::size_t kCacheLimit = 256u << 20;    // one receive limit's worth

[[noreturn]] void no_memory(std::size_t size) {
  throw Error(Code::kResource, "receive", "no memory for a dict of " + std::to_string(size) + " bytes");
}

class Cache {
 public:
  std::uint8_t* take(std::size_t capacity) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.find(capacity);
    if (found == free_.end() || found->second.empty()) return nullptr;
    std::uint8_t* bytes = found->second.back();
    found->second.pop_back();
    held_ -= capacity;
    return bytes;
  }

  bool keep(std::uint8_t* bytes, std::size_t capacity) {
    const std::lock_guard lock(mutex_);
    if (held_ + capacity > kCacheLimit) return false;
    free_[capacity].push_back(bytes);
    held_ += capacity;
    return true;
  }

  void drop() {
    const std::lock_guard lock(mutex_);
    for (auto& [capacity, blocks] : free_) {
      for (std::uint8_t* bytes : blocks) ::munmap(bytes, capacity);
    }
    free_.clear();
    held_ = 0;
  }

  std::size_t held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

 private:
  std::mutex mutex_;
  std::map<std::size_t, std::vector<std::uint8_t*>> free_;
  std::size_t held_ = 0;
};

// Never destroyed: a tensor may die after static destructors ran.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

std::uint8_t* map(std::size_t capacity) {
  if (std::uint8_t* cached = cache().take(capacity)) return cached;
  void* bytes = ::mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) no_memory(capacity);
  return static_cast<std::uint8_t*>(bytes);
}

}  // namespace

// Four classes per power of two: at most a quarter is wasted, and untouched pages cost nothing.
std::size_t size_class(std::size_t size) {
  if (size <= kMappedFrom) return align_up(std::max<std::size_t>(size, 1));
  const std::size_t step = std::bit_floor(size - 1) / 4;
  return (size + step - 1) / step * step;
}

std::shared_ptr<ReceiveBlock> ReceiveBlock::make(std::size_t size) {
  const std::size_t capacity = size_class(size);
  std::uint8_t* bytes = nullptr;
  if (capacity > kMappedFrom) {
    bytes = map(capacity);
  } else {
    bytes = static_cast<std::uint8_t*>(std::aligned_alloc(kAlign, capacity));
    if (bytes == nullptr) no_memory(size);
  }
  return std::shared_ptr<ReceiveBlock>(new ReceiveBlock(bytes, size, capacity));
}

ReceiveBlock::~ReceiveBlock() {
  if (capacity_ <= kMappedFrom) {
    std::free(bytes_);
  } else if (!cache().keep(bytes_, capacity_)) {
    ::munmap(bytes_, capacity_);
  }
}

std::size_t cached_receive_bytes() { return cache().held(); }
void drop_cached_receive_blocks() { cache().drop(); }

}  // namespace zmqpp::memory
