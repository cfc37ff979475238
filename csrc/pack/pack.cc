#include "pack/pack.h"

#include <algorithm>

#include "pack/arithmetic.h"

namespace zmqpp::pack {
namespace {

// Of a run: `size` is a constant where it is called for whole ones, so that the compiler knows how many vectors there are.
template <class N, class F>
ZMQPP_INLINE void pack_run(const typename N::Bits* __restrict in, std::size_t size, std::uint8_t* __restrict out, float* scale) {
  typename N::Bits largest = 0;  // magnitudes are in the order of their bits, NaN above all
  for (std::size_t i = 0; i < size; ++i) {
    largest = std::max(largest, static_cast<typename N::Bits>(in[i] & N::kMagnitudeBits));
  }
  *scale = scale_of<F>(N::value(largest));
  const float inverse = inverse_of(*scale);
  const std::uint8_t mask = mask_of(*scale);
  for (std::size_t i = 0; i < size; ++i) out[i] = packed<N, F>(in[i], inverse, mask);
}

template <class N, class F>
ZMQPP_INLINE void unpack_run(const std::uint8_t* __restrict in, std::size_t size, float scale, typename N::Bits* __restrict out) {
  for (std::size_t i = 0; i < size; ++i) out[i] = unpacked<N, F>(in[i], scale);
}

template <class N, class F>
ZMQPP_INLINE void pack_rows(Shape shape, const void* numbers, std::uint8_t* out, float* scale) {
  const auto* in = static_cast<const typename N::Bits*>(numbers);
  for (std::size_t row = 0; row < shape.rows; ++row) {
    std::size_t left = shape.columns;
    for (; left >= kRun; left -= kRun, in += kRun, out += kRun) pack_run<N, F>(in, kRun, out, scale++);
    if (left > 0) pack_run<N, F>(in, left, out, scale++);
    in += left;
    out += left;
  }
}

template <class N, class F>
ZMQPP_INLINE void unpack_rows(Shape shape, const std::uint8_t* in, const float* scale, void* numbers) {
  auto* out = static_cast<typename N::Bits*>(numbers);
  for (std::size_t row = 0; row < shape.rows; ++row) {
    std::size_t left = shape.columns;
    for (; left >= kRun; left -= kRun, in += kRun, out += kRun) unpack_run<N, F>(in, kRun, *scale++, out);
    if (left > 0) unpack_run<N, F>(in, left, *scale++, out);
    in += left;
    out += left;
  }
}

// The same loops, once for each kind of vectors.
#define ZMQPP_LOOPS(Name, attribute)                                                                             \
  struct Name {                                                                                                  \
    template <class N, class F>                                                                                  \
    attribute static void pack(Shape shape, const void* numbers, std::uint8_t* codes, float* scales) {           \
      pack_rows<N, F>(shape, numbers, codes, scales);                                                            \
    }                                                                                                            \
    template <class N, class F>                                                                                  \
    attribute static void unpack(Shape shape, const std::uint8_t* codes, const float* scales, void* numbers) {   \
      unpack_rows<N, F>(shape, codes, scales, numbers);                                                          \
    }                                                                                                            \
  }

ZMQPP_LOOPS(Baseline, );
#if defined(__x86_64__)
ZMQPP_LOOPS(Avx2, [[gnu::target("avx2")]]);
ZMQPP_LOOPS(Avx512, [[gnu::target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")]]);
#endif

Vectors find_vectors() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return Vectors::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return Vectors::kAvx2;
#endif
  return Vectors::kBaseline;
}

// Calls `act` with values of the types that the two words stand for.
template <class Act>
void choose(Number number, Format format, Act act) {
  const auto with_format = [&](auto n) { format == Format::kFp8 ? act(n, Fp8{}) : act(n, Int8{}); };
  if (number == Number::kFloat32) return with_format(Float32{});
  if (number == Number::kFloat16) return with_format(Float16{});
  return with_format(Bfloat16{});
}

}  // namespace

std::size_t Shape::runs_of_a_row() const { return (columns + kRun - 1) / kRun; }

Vectors best_vectors() {
  static const Vectors found = find_vectors();
  return found;
}

const char* name_of(Vectors vectors) {
  switch (vectors) {
    case Vectors::kAvx512: return "avx512";
    case Vectors::kAvx2: return "avx2";
    default: return "baseline";
  }
}

void pack(Number number, Format format, Shape shape, const void* numbers, std::uint8_t* codes, float* scales,
          [[maybe_unused]] Vectors by) noexcept {
  choose(number, format, [&]<class N, class F>(N, F) {
#if defined(__x86_64__)
    if (by == Vectors::kAvx512) return Avx512::pack<N, F>(shape, numbers, codes, scales);
    if (by == Vectors::kAvx2) return Avx2::pack<N, F>(shape, numbers, codes, scales);
#endif
    Baseline::pack<N, F>(shape, numbers, codes, scales);
  });
}

void unpack(Number number, Format format, Shape shape, const std::uint8_t* codes, const float* scales, void* numbers,
            [[maybe_unused]] Vectors by) noexcept {
  choose(number, format, [&]<class N, class F>(N, F) {
#if defined(__x86_64__)
    if (by == Vectors::kAvx512) return Avx512::unpack<N, F>(shape, codes, scales, numbers);
    if (by == Vectors::kAvx2) return Avx2::unpack<N, F>(shape, codes, scales, numbers);
#endif
    Baseline::unpack<N, F>(shape, codes, scales, numbers);
  });
}

}  // namespace zmqpp::pack
