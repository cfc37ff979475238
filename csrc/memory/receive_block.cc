#include "memory/receive_block.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "base/align.h"
#include "base/error.h"

namespace zmqpp::memory {
namespace {

constexpr std::size_t kMappedFrom = 64u << 10;     // larger ones are mapped, smaller ones come from malloc
constexpr std::size_t kSmallest = 256;
constexpr std::size_t kCacheLimit = 512u << 20;
constexpr std::uint64_t kNever = ~std::uint64_t{0};
std::atomic<std::uint64_t> allocations{0};

[[noreturn]] void no_memory(std::size_t size) {
  throw Error(Code::kResource, "receive", "no memory for a dict of " + std::to_string(size) + " bytes");
}

void to_system(std::uint8_t* bytes, std::size_t capacity) {
  if (capacity > kMappedFrom) {
    ::munmap(bytes, capacity);
  } else {
    std::free(bytes);
  }
}

struct Kept {
  std::uint8_t* bytes;
  std::uint64_t since;  // counts what was kept
};

// What nobody used for longest goes first, so that blocks of sizes that come no more do not keep out those that do.
class Cache {
 public:
  std::uint8_t* take(std::size_t capacity) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.find(capacity);
    if (found == free_.end() || found->second.empty()) return nullptr;
    std::uint8_t* bytes = found->second.back().bytes;
    found->second.pop_back();
    held_ -= capacity;
    return bytes;
  }

  void keep(std::uint8_t* bytes, std::size_t capacity) {
    if (capacity > kCacheLimit) return to_system(bytes, capacity);
    const std::lock_guard lock(mutex_);
    while (held_ + capacity > kCacheLimit) drop_oldest();
    free_[capacity].push_back({bytes, ++kept_});
    held_ += capacity;
  }

  void drop() {
    const std::lock_guard lock(mutex_);
    while (held_ > 0) drop_oldest();
  }

  std::size_t held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

 private:
  void drop_oldest() {  // there is one
    const auto since = [](const auto& entry) { return entry.second.empty() ? kNever : entry.second.front().since; };
    const auto older = [&](const auto& a, const auto& b) { return since(a) < since(b); };
    const auto oldest = std::min_element(free_.begin(), free_.end(), older);
    to_system(oldest->second.front().bytes, oldest->first);
    held_ -= oldest->first;
    oldest->second.pop_front();
  }

  std::mutex mutex_;
  std::map<std::size_t, std::deque<Kept>> free_;  // by size class, the oldest in front
  std::size_t held_ = 0;
  std::uint64_t kept_ = 0;
};

// Never destroyed: a tensor may die after static destructors ran.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

std::uint8_t* from_system(std::size_t capacity) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (capacity <= kMappedFrom) {
    auto* bytes = static_cast<std::uint8_t*>(std::aligned_alloc(kAlign, capacity));
    if (bytes == nullptr) no_memory(capacity);
    return bytes;
  }
  void* bytes = ::mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) no_memory(capacity);
  return static_cast<std::uint8_t*>(bytes);
}

}  // namespace

// Four classes per power of two: at most a quarter is wasted, and untouched pages cost nothing.
std::size_t size_class(std::size_t size) {
  if (size <= kSmallest) return kSmallest;
  const std::size_t step = std::bit_floor(size - 1) / 4;
  return (size + step - 1) / step * step;
}

ReceiveBlock::ReceiveBlock(std::uint8_t* bytes, std::size_t size, std::size_t capacity, std::shared_ptr<Lender> lender,
                           std::uint64_t lease)
    : bytes_(bytes), size_(size), capacity_(capacity), lender_(std::move(lender)), lease_(lease) {}

std::shared_ptr<ReceiveBlock> ReceiveBlock::make(std::size_t size) {
  const std::size_t capacity = size_class(size);
  std::uint8_t* bytes = cache().take(capacity);
  if (bytes == nullptr) bytes = from_system(capacity);
  return std::make_shared<ReceiveBlock>(bytes, size, capacity);
}

std::shared_ptr<ReceiveBlock> ReceiveBlock::lent(std::shared_ptr<Lender> lender, std::uint64_t lease,
                                                 std::uint8_t* bytes, std::size_t size) {
  return std::make_shared<ReceiveBlock>(bytes, size, size, std::move(lender), lease);
}

ReceiveBlock::~ReceiveBlock() {
  if (lender_) {
    lender_->take_back(lease_, size_);
  } else {
    cache().keep(bytes_, capacity_);
  }
}

std::uint64_t receive_allocations() { return allocations.load(std::memory_order_relaxed); }
std::size_t cached_receive_bytes() { return cache().held(); }
void drop_cached_receive_blocks() { cache().drop(); }

}  // namespace zmqpp::memory
