// The arithmetic of packing: what a run of numbers becomes, and what it reads as. One text for the CPU and for CUDA.
//
// A run is at most 128 neighbours of one row. It becomes one float32 scale and a byte a value: the value divided by the
// scale, as fp8 (e4m3fn) or int8, to nearest, ties to even. Prose: docs/wire_format.md, section "Packed tensors".
// Everything is exact by IEEE 754 as long as nobody fuses a product with a sum: compile with -ffp-contract=off, -fmad=false.
// Branch-free, and in 16 and 32 bit integers where it can be, so that compilers make vectors of it.
//
// Owns: nothing. Blocks? never. Thread: all safe. Errors: none: every bit pattern is a number, or NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ZMQPP_INLINE __host__ __device__ __forceinline__
#else
#define ZMQPP_INLINE __attribute__((always_inline)) inline
#endif

namespace zmqpp::pack {

constexpr std::size_t kRun = 128;

ZMQPP_INLINE float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ZMQPP_INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// By masks: of a `?:` compilers may make a jump, and of a loop with jumps no vectors.
ZMQPP_INLINE std::uint32_t select(bool first, std::uint32_t one, std::uint32_t other) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(first);
  return (one & mask) | (other & ~mask);
}

constexpr std::uint32_t kSign = 0x80000000, kMagnitude = 0x7fffffff, kInfinity = 0x7f800000, kNan = 0x7fc00000;

// ---- the numbers of a tensor: value() is exact, rounded() to nearest even ----------------------------------------

struct Float32 {
  using Bits = std::uint32_t;
  static constexpr Bits kMagnitudeBits = 0x7fffffff;
  static ZMQPP_INLINE float value(Bits bits) { return float_of(bits); }
  static ZMQPP_INLINE Bits rounded(float value) { return bits_of(value); }
};

struct Bfloat16 {
  using Bits = std::uint16_t;
  static constexpr Bits kMagnitudeBits = 0x7fff;
  static ZMQPP_INLINE float value(Bits bits) { return float_of(std::uint32_t{bits} << 16); }
  static ZMQPP_INLINE Bits rounded(float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t number = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<Bits>(select((bits & kMagnitude) > kInfinity, 0x7fc0, number));
  }
};

struct Float16 {
  using Bits = std::uint16_t;
  static constexpr Bits kMagnitudeBits = 0x7fff;

  static ZMQPP_INLINE float value(Bits bits) {
    const std::uint32_t magnitude = bits & 0x7fffu;
    const std::uint32_t normal = (magnitude << 13) + (112u << 23);  // other bias of the exponent
    // Below 2^-14: as if the exponent were the smallest, less the leading one that is not there. No float32 is denormal here.
    const std::uint32_t small = bits_of(float_of((113u << 23) | (magnitude << 13)) - float_of(113u << 23));
    std::uint32_t made = select(magnitude < 0x0400, small, normal);
    made = select(magnitude >= 0x7c00, normal + (112u << 23), made);  // infinities and NaN
    return float_of(made | (std::uint32_t{bits} & 0x8000u) << 16);
  }

  static ZMQPP_INLINE Bits rounded(float value) {
    const std::uint32_t bits = bits_of(value), magnitude = bits & kMagnitude;
    const std::uint32_t normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112u << 10);
    const std::uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // 0.5 counts in 2^-24, as these do
    std::uint32_t made = select(magnitude < (113u << 23), small, normal);
    made = select(made < 0x7c00, made, 0x7c00);
    made = select(magnitude > kInfinity, 0x7e00, made);
    return static_cast<Bits>(made | (bits & kSign) >> 16);
  }
};

// ---- the formats: code() of a value divided by its scale, value() of a code --------------------------------------

struct Fp8 {
  static constexpr float kLimit = 448.0f;
  static constexpr float kLargestScale = 0x1.249248p+119f;  // times 448: the largest float32

  static ZMQPP_INLINE std::uint8_t code(float value) {
    const std::uint32_t bits = bits_of(value), magnitude = bits & kMagnitude;
    const std::uint32_t normal = ((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - (120u << 3);
    const std::uint32_t small = bits_of(float_of(magnitude) + 16384.0f) - bits_of(16384.0f);  // 16384 counts in 2^-9
    std::uint32_t made = select(magnitude < (121u << 23), small, normal);
    made = select(made < 0x7e, made, 0x7e);
    return static_cast<std::uint8_t>(made | (bits & kSign) >> 24);
  }

  static ZMQPP_INLINE float value(std::uint8_t code) {
    const std::uint32_t magnitude = code & 0x7fu;
    const std::uint32_t normal = (magnitude << 20) + (120u << 23);
    const std::uint32_t small = bits_of(float_of((121u << 23) | (magnitude << 20)) - float_of(121u << 23));
    std::uint32_t made = select(magnitude < 8, small, normal);
    made = select(magnitude == 0x7f, kNan, made);
    return float_of(made | (std::uint32_t{code} & 0x80u) << 24);
  }
};

struct Int8 {
  static constexpr float kLimit = 127.0f;
  static constexpr float kLargestScale = 0x1.020406p+121f;  // times 127: not beyond the largest float32

  static ZMQPP_INLINE std::uint8_t code(float value) {
    return static_cast<std::uint8_t>(bits_of(value + 12582912.0f));  // 1.5 * 2^23 counts in ones
  }

  static ZMQPP_INLINE float value(std::uint8_t code) { return static_cast<float>(static_cast<std::int8_t>(code)); }
};

// ---- a run -------------------------------------------------------------------------------------------------------

// A run whose largest magnitude is infinite or no number reads as NaN from end to end. The scale of one that is tiny, or of
// zeros, is the smallest normal float32, whose inverse still is a number.
template <class Format>
ZMQPP_INLINE float scale_of(float largest) {
  const float scale = largest / Format::kLimit, tiny = float_of(1u << 23);
  const float kept = scale < tiny ? tiny : scale > Format::kLargestScale ? Format::kLargestScale : scale;
  return bits_of(largest) >= kInfinity ? float_of(kNan) : kept;
}

ZMQPP_INLINE float inverse_of(float scale) { return 1.0f / scale; }

// What the bytes of a run are ANDed with: where the scale is NaN they say nothing, and are zeros.
ZMQPP_INLINE std::uint8_t mask_of(float scale) { return bits_of(scale) == kNan ? 0 : 0xff; }

template <class Number, class Format>
ZMQPP_INLINE std::uint8_t packed(typename Number::Bits bits, float inverse, std::uint8_t mask) {
  return static_cast<std::uint8_t>(Format::code(Number::value(bits) * inverse) & mask);
}

template <class Number, class Format>
ZMQPP_INLINE typename Number::Bits unpacked(std::uint8_t code, float scale) {
  return Number::rounded(Format::value(code) * scale);
}

}  // namespace zmqpp::pack
