#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace zmqpp {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;  // reflected

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}

constexpr auto kTable = make_table();

[[maybe_unused]] std::uint32_t by_table(std::uint32_t crc, const std::uint8_t* in, std::size_t size) {
  for (; size > 0; --size) crc = kTable[(crc ^ *in++) & 0xff] ^ (crc >> 8);
  return crc;
}

// The instruction has a latency of three cycles and starts one a cycle, so three lanes run beside one another. Their
// results are joined by shifting: a lane's CRC is advanced over the bytes behind it, by a matrix applied to its bits.
constexpr std::size_t kLane = 4096;

using Matrix = std::array<std::uint32_t, 32>;

constexpr std::uint32_t apply(const Matrix& matrix, std::uint32_t vector) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; vector != 0; ++i, vector >>= 1) sum ^= (vector & 1) != 0 ? matrix[i] : 0;
  return sum;
}

constexpr Matrix square(const Matrix& matrix) {
  Matrix out{};
  for (std::size_t i = 0; i < 32; ++i) out[i] = apply(matrix, matrix[i]);
  return out;
}

// Advances a CRC over `bytes` zero bytes, a power of two.
constexpr Matrix shift_matrix(std::size_t bytes) {
  Matrix one_bit{};
  one_bit[0] = kPolynomial;
  for (std::size_t i = 1; i < 32; ++i) one_bit[i] = 1u << (i - 1);
  Matrix out = square(square(square(one_bit)));
  for (; bytes > 1; bytes /= 2) out = square(out);
  return out;
}

// The same by bytes of the CRC: four look-ups instead of 32 steps.
constexpr std::array<std::array<std::uint32_t, 256>, 4> shift_table(const Matrix& matrix) {
  std::array<std::array<std::uint32_t, 256>, 4> table{};
  for (std::size_t at = 0; at < 4; ++at) {
    for (std::uint32_t byte = 0; byte < 256; ++byte) table[at][byte] = apply(matrix, byte << (8 * at));
  }
  return table;
}

[[maybe_unused]] std::uint32_t shift_lane(std::uint32_t crc) {
  static const auto table = shift_table(shift_matrix(kLane));
  return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^ table[3][crc >> 24];
}

#if defined(__x86_64__)
#define ZMQPP_CRC_TARGET __attribute__((target("sse4.2")))
ZMQPP_CRC_TARGET inline std::uint64_t step8(std::uint64_t crc, std::uint64_t word) { return _mm_crc32_u64(crc, word); }
ZMQPP_CRC_TARGET inline std::uint32_t step1(std::uint32_t crc, std::uint8_t byte) { return _mm_crc32_u8(crc, byte); }
bool has_instruction() { return __builtin_cpu_supports("sse4.2"); }
constexpr const char* kHardware = "sse4.2";
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#define ZMQPP_CRC_TARGET
inline std::uint64_t step8(std::uint64_t crc, std::uint64_t word) { return __crc32cd(static_cast<std::uint32_t>(crc), word); }
inline std::uint32_t step1(std::uint32_t crc, std::uint8_t byte) { return __crc32cb(crc, byte); }
bool has_instruction() { return true; }
constexpr const char* kHardware = "armv8";
#else
bool has_instruction() { return false; }
constexpr const char* kHardware = "table";
#endif

#if defined(ZMQPP_CRC_TARGET)
ZMQPP_CRC_TARGET inline std::uint64_t word_at(const std::uint8_t* in) {
  std::uint64_t word;
  std::memcpy(&word, in, sizeof word);
  return word;
}

ZMQPP_CRC_TARGET std::uint32_t by_instruction(std::uint32_t crc, const std::uint8_t* in, std::size_t size) {
  for (; size >= 3 * kLane; size -= 3 * kLane, in += 3 * kLane) {
    std::uint64_t a = crc, b = 0, c = 0;
    for (std::size_t i = 0; i < kLane; i += 8) {
      a = step8(a, word_at(in + i));
      b = step8(b, word_at(in + kLane + i));
      c = step8(c, word_at(in + 2 * kLane + i));
    }
    crc = shift_lane(static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b);
    crc = shift_lane(crc) ^ static_cast<std::uint32_t>(c);
  }
  std::uint64_t wide = crc;
  for (; size >= 8; size -= 8, in += 8) wide = step8(wide, word_at(in));
  crc = static_cast<std::uint32_t>(wide);
  for (; size > 0; --size) crc = step1(crc, *in++);
  return crc;
}
#endif

}  // namespace

std::uint32_t crc32c(std::uint32_t crc, const void* bytes, std::size_t size) noexcept {
  const auto* in = static_cast<const std::uint8_t*>(bytes);
#if defined(ZMQPP_CRC_TARGET)
  static const bool hardware = has_instruction();
  if (hardware) return ~by_instruction(~crc, in, size);
#endif
  return ~by_table(~crc, in, size);
}

const char* crc32c_implementation() noexcept { return has_instruction() ? kHardware : "table"; }

}  // namespace zmqpp
