// Packing and unpacking on the GPU: a warp takes a run, so that the tensor is read once, and nothing of it is kept.
//
// Four values a lane. The magnitude that the scale is made of is found by one reduction over the warp. Where rows begin at
// a multiple of four values, which hidden sizes do, each lane reads and writes its four at once.
// Compiled by nvcc alone into an image that pack/on_device loads through the driver; the arithmetic is the CPU's.
#include "pack/arithmetic.h"

namespace {

using namespace zmqpp::pack;  // NOLINT: a program of its own

constexpr unsigned kLanes = 32, kEach = kRun / kLanes;
static_assert(kEach == 4, "a lane's codes are one word");

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T of[kEach];
};

// The run of this warp, and what of it is this lane's.
struct Place {
  unsigned run;             // in the tensor
  std::size_t at;           // of the lane's first value
  unsigned count;           // of the lane's values: 4, fewer at the end of a row, or none
  bool exists;              // the last block may have more warps than there are runs

  __device__ Place(unsigned runs, unsigned columns) {
    const unsigned runs_of_a_row = (columns + kRun - 1) / kRun, lane = threadIdx.x % kLanes;
    run = blockIdx.x * (blockDim.x / kLanes) + threadIdx.x / kLanes;
    exists = run < runs;
    const unsigned column = run % runs_of_a_row * static_cast<unsigned>(kRun) + lane * kEach;
    at = static_cast<std::size_t>(run / runs_of_a_row) * columns + column;
    count = column >= columns ? 0 : min(columns - column, kEach);
  }
};

template <class T>
__device__ Four<T> load(const T* from, unsigned count, bool whole) {
  Four<T> values{};
  if (whole && count == kEach) return *reinterpret_cast<const Four<T>*>(from);
  for (unsigned i = 0; i < kEach; ++i) {
    if (i < count) values.of[i] = from[i];
  }
  return values;
}

template <class T>
__device__ void store(T* to, const Four<T>& values, unsigned count, bool whole) {
  if (whole && count == kEach) {
    *reinterpret_cast<Four<T>*>(to) = values;
    return;
  }
  for (unsigned i = 0; i < kEach; ++i) {
    if (i < count) to[i] = values.of[i];
  }
}

template <class N, class F>
__device__ void pack(const typename N::Bits* numbers, std::uint8_t* codes, float* scales, unsigned runs, unsigned columns,
                     bool whole) {
  const Place place(runs, columns);
  if (!place.exists) return;  // of all lanes alike
  const auto in = load(numbers + place.at, place.count, whole);
  unsigned largest = 0;
  for (const auto bits : in.of) largest = max(largest, static_cast<unsigned>(bits & N::kMagnitudeBits));
  largest = __reduce_max_sync(0xffffffff, largest);
  const float scale = scale_of<F>(N::value(static_cast<typename N::Bits>(largest)));
  const float inverse = inverse_of(scale);
  const std::uint8_t mask = mask_of(scale);
  Four<std::uint8_t> out;
  for (unsigned i = 0; i < kEach; ++i) out.of[i] = packed<N, F>(in.of[i], inverse, mask);
  store(codes + place.at, out, place.count, whole);
  if (threadIdx.x % kLanes == 0) scales[place.run] = scale;
}

template <class N, class F>
__device__ void unpack(const std::uint8_t* codes, const float* scales, typename N::Bits* numbers, unsigned runs,
                       unsigned columns, bool whole) {
  const Place place(runs, columns);
  if (!place.exists) return;
  const float scale = scales[place.run];
  const auto in = load(codes + place.at, place.count, whole);
  Four<typename N::Bits> out;
  for (unsigned i = 0; i < kEach; ++i) out.of[i] = unpacked<N, F>(in.of[i], scale);
  store(numbers + place.at, out, place.count, whole);
}

}  // namespace

#define ZMQPP_KERNELS(number, Number, format, Format)                                                                    \
  extern "C" __global__ void pack_##number##_##format(const Number::Bits* numbers, std::uint8_t* codes, float* scales,   \
                                                      unsigned runs, unsigned columns, bool whole) {                     \
    pack<Number, Format>(numbers, codes, scales, runs, columns, whole);                                                  \
  }                                                                                                                      \
  extern "C" __global__ void unpack_##number##_##format(const std::uint8_t* codes, const float* scales,                  \
                                                        Number::Bits* numbers, unsigned runs, unsigned columns,          \
                                                        bool whole) {                                                    \
    unpack<Number, Format>(codes, scales, numbers, runs, columns, whole);                                                \
  }

ZMQPP_KERNELS(float32, Float32, fp8, Fp8)
ZMQPP_KERNELS(float32, Float32, int8, Int8)
ZMQPP_KERNELS(float16, Float16, fp8, Fp8)
ZMQPP_KERNELS(float16, Float16, int8, Int8)
ZMQPP_KERNELS(bfloat16, Bfloat16, fp8, Fp8)
ZMQPP_KERNELS(bfloat16, Bfloat16, int8, Int8)
