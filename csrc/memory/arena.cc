#include "memory/arena.h"

#include <algorithm>

namespace zmqpp::memory {
namespace {

constexpr std::uint64_t kTurnsFrom = 256u << 10;
constexpr std::uint64_t kTurnsTo = 8u << 20;  // from here on, memory::copy_bytes stores past the caches

}  // namespace

Arena::Arena(std::uint64_t bytes, std::size_t most) : bytes_(bytes / kGrain * kGrain) {
  free_.reserve(most + 2);
  free_.push_back({0, bytes_});
}

std::optional<std::uint64_t> Arena::take(std::uint64_t size) {
  const std::uint64_t needed = std::max(rounded(size), kGrain);
  if (needed < kTurnsFrom || needed >= kTurnsTo) return take_from(0, needed);
  auto offset = take_from(turn_, needed);
  if (!offset) offset = take_from(0, needed);
  if (offset) turn_ = *offset == 0 ? needed : 0;
  return offset;
}

std::optional<std::uint64_t> Arena::take_from(std::uint64_t start, std::uint64_t needed) {
  for (auto extent = free_.begin(); extent != free_.end(); ++extent) {
    const std::uint64_t end = extent->offset + extent->size;
    const std::uint64_t offset = std::max(extent->offset, start);
    if (offset >= end || end - offset < needed) continue;
    const Extent behind{offset + needed, end - offset - needed};
    extent->size = offset - extent->offset;
    if (extent->size == 0 && behind.size == 0) {
      free_.erase(extent);
    } else if (extent->size == 0) {
      *extent = behind;
    } else if (behind.size > 0) {
      free_.insert(extent + 1, behind);
    }
    return offset;
  }
  return std::nullopt;
}

void Arena::give_back(std::uint64_t offset, std::uint64_t size) {
  std::uint64_t end = offset + std::max(rounded(size), kGrain);
  if (offset >= bytes_) return;  // taken before it shrank
  end = std::min(end, bytes_);
  const auto before = [](const Extent& extent, std::uint64_t at) { return extent.offset < at; };
  auto next = std::lower_bound(free_.begin(), free_.end(), offset, before);
  const bool joins_next = next != free_.end() && next->offset == end;
  if (next != free_.begin() && (next - 1)->offset + (next - 1)->size == offset) {
    (next - 1)->size += end - offset;
    if (joins_next) {
      (next - 1)->size += next->size;
      free_.erase(next);
    }
  } else if (joins_next) {
    next->size += end - offset;
    next->offset = offset;
  } else {
    free_.insert(next, {offset, end - offset});
  }
}

void Arena::shrink(std::uint64_t bytes) {
  bytes_ = std::min(bytes_, bytes / kGrain * kGrain);
  for (Extent& extent : free_) {
    const std::uint64_t end = std::min(extent.offset + extent.size, bytes_);
    extent.size = end > extent.offset ? end - extent.offset : 0;
  }
  std::erase_if(free_, [](const Extent& extent) { return extent.size == 0; });
}

std::uint64_t Arena::largest() const {
  std::uint64_t most = 0;
  for (const Extent& extent : free_) most = std::max(most, extent.size);
  return most;
}

}  // namespace zmqpp::memory
