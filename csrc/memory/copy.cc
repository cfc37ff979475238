#include "memory/copy.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace zmqpp::memory {
namespace {

// Measured, because a guest does not see its share of the last-level cache (sysconf tells the whole host's): at 6 MiB
// ordinary stores are as fast, at 16 MiB they are down to two thirds.
constexpr std::size_t kStreamingFrom = 8u << 20;

#if defined(__x86_64__)

constexpr std::size_t kLine = 64;
constexpr std::size_t kAhead = 1024;  // hardware prefetchers stop at a page's end

// Both take whole lines at an aligned target. Four lines a round keep enough write-combining buffers open.
__attribute__((target("avx512f"))) void stream_512(std::uint8_t* to, const std::uint8_t* from, std::size_t lines) {
  for (; lines >= 4; lines -= 4, to += 4 * kLine, from += 4 * kLine) {
    for (std::size_t i = 0; i < 4; ++i) _mm_prefetch(reinterpret_cast<const char*>(from + kAhead + i * kLine), _MM_HINT_T0);
    const __m512i a = _mm512_loadu_si512(from);
    const __m512i b = _mm512_loadu_si512(from + kLine);
    const __m512i c = _mm512_loadu_si512(from + 2 * kLine);
    const __m512i d = _mm512_loadu_si512(from + 3 * kLine);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), a);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + kLine), b);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 2 * kLine), c);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 3 * kLine), d);
  }
  for (; lines > 0; --lines, to += kLine, from += kLine) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }
}

void stream_128(std::uint8_t* to, const std::uint8_t* from, std::size_t lines) {
  for (; lines > 0; --lines) {
    for (int i = 0; i < 4; ++i, to += 16, from += 16) {
      const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to), part);
    }
  }
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t size) {
  static const bool wide = __builtin_cpu_supports("avx512f");
  const std::size_t front = std::min(size, (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, front);
  const std::size_t lines = (size - front) / kLine;
  (wide ? stream_512 : stream_128)(to + front, from + front, lines);
  const std::size_t done = front + lines * kLine;
  std::memcpy(to + done, from + done, size - done);
  _mm_sfence();  // these stores are not ordered with the one that publishes them
}

#else

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t size) { std::memcpy(to, from, size); }

#endif

}  // namespace

std::size_t streaming_from() { return kStreamingFrom; }

void copy_bytes(std::uint8_t* to, const std::uint8_t* from, std::size_t size, std::size_t of) noexcept {
  if (of < kStreamingFrom) {
    std::memcpy(to, from, size);
  } else {
    stream(to, from, size);
  }
}

}  // namespace zmqpp::memory
