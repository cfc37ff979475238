// Durations by their magnitude: p50 and p99 of everything since a link opened, within an eighth.
//
// Owns: counters. Blocks? never. Thread: all safe, relaxed. Errors: none. Cost of an entry: one addition.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

namespace zmqpp::engine {

class Histogram {
 public:
  void add(std::uint64_t ns) noexcept { counts_[index_of(ns)].fetch_add(1, std::memory_order_relaxed); }

  // The middle of the class in which the given share of all durations ends; 0 when there are none.
  std::uint64_t quantile(double share) const noexcept {
    std::uint64_t total = 0;
    for (const auto& count : counts_) total += count.load(std::memory_order_relaxed);
    if (total == 0) return 0;
    const auto wanted = static_cast<std::uint64_t>(share * static_cast<double>(total - 1)) + 1;
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i].load(std::memory_order_relaxed);
      if (seen >= wanted) return middle_of(i);
    }
    return middle_of(counts_.size() - 1);
  }

 private:
  // Four classes for each power of two, exact below four.
  static constexpr std::size_t index_of(std::uint64_t ns) noexcept {
    if (ns < 4) return ns;
    const auto power = static_cast<unsigned>(std::bit_width(ns)) - 1;
    return (power - 1) * 4 + ((ns >> (power - 2)) & 3);
  }

  static constexpr std::uint64_t middle_of(std::size_t index) noexcept {
    if (index < 4) return index;
    const std::size_t power = index / 4 + 1;
    const std::uint64_t step = std::uint64_t{1} << (power - 2);
    return (4 + index % 4) * step + step / 2;
  }

  std::array<std::atomic<std::uint64_t>, 252> counts_{};
};

}  // namespace zmqpp::engine
