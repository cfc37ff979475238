// Bytes that both ends of a test can make: any shift, gap, repeat or foreign byte shows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace pattern {

// splitmix64: a good mix of every bit, cheap enough for sanitized builds.
inline std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Small, seeded, and the same everywhere, unlike std::uniform_int_distribution.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(mix(seed)) {}
  std::uint64_t next() { return mix(state_++); }
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  bool one_in(std::uint64_t n) { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

inline std::uint64_t word(std::uint64_t seed, std::size_t index) { return mix(seed * 0x100000001b3u + index); }

inline std::vector<std::uint8_t> bytes(std::uint64_t seed, std::size_t size) {
  std::vector<std::uint8_t> out(size);
  for (std::size_t at = 0; at < size; at += 8) {
    const std::uint64_t value = word(seed, at / 8);
    std::memcpy(out.data() + at, &value, std::min<std::size_t>(8, size - at));
  }
  return out;
}

inline bool matches(std::uint64_t seed, const std::uint8_t* found, std::size_t size) {
  for (std::size_t at = 0; at < size; at += 8) {
    const std::uint64_t value = word(seed, at / 8);
    if (std::memcmp(found + at, &value, std::min<std::size_t>(8, size - at)) != 0) return false;
  }
  return true;
}

inline bool all_zero(const std::uint8_t* found, std::size_t size) {
  return std::all_of(found, found + size, [](std::uint8_t byte) { return byte == 0; });
}

}  // namespace pattern
