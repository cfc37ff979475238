#include "memory/arena.h"

#include <algorithm>

namespace zmqpp::memory {

Arena::Arena(std::uint64_t bytes, std::size_t most) : bytes_(bytes / kGrain * kGrain) {
  free_.reserve(most + 2);
  free_.push_back({0, bytes_});
}

std::optional<std::uint64_t> Arena::take(std::uint64_t size) {
  const std::uint64_t needed = std::max(rounded(size), kGrain);
  const auto fits = [&](const Extent& extent) { return extent.size >= needed; };
  const auto found = std::find_if(free_.begin(), free_.end(), fits);
  if (found == free_.end()) return std::nullopt;
  const std::uint64_t offset = found->offset;
  found->offset += needed;
  found->size -= needed;
  if (found->size == 0) free_.erase(found);
  return offset;
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
