// The kernels of csrc/pack/kernels.cu, run by the CPU: their own text, compiled as C++, one thread of a block after another.
//
// Lanes of a warp meet in one place only, where they reduce. So each warp is run twice: first the lanes say what they bring,
// then they hear the result. What the first run has written, the second one writes again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>

#include "pack/arithmetic.h"

#define __global__
#define __device__

namespace fake {

struct Index {
  unsigned x = 0;
};

struct Warp {
  unsigned largest = 0;
  bool knows = false;
};

inline thread_local Index threadIdx, blockIdx, blockDim;
inline thread_local Warp warp;

inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  if (!warp.knows) warp.largest = std::max(warp.largest, value);
  return warp.knows ? warp.largest : value;
}

using std::max;
using std::min;

#include "pack/kernels.cu"

// Of a launch, as cuLaunchKernel takes them: three addresses, and what the kernels say of the tensor.
struct Arguments {
  explicit Arguments(void** from) {
    for (int i = 0; i < 3; ++i) std::memcpy(&addresses[i], from[i], sizeof addresses[i]);
    std::memcpy(&runs, from[3], sizeof runs);
    std::memcpy(&columns, from[4], sizeof columns);
    std::memcpy(&whole, from[5], sizeof whole);
  }
  std::uint64_t addresses[3];
  unsigned runs, columns;
  bool whole;
};

using Kernel = void (*)(const Arguments&);

template <class A, class B, class C>
void call(void (*kernel)(A, B, C, unsigned, unsigned, bool), const Arguments& with) {
  const auto [a, b, c] = with.addresses;
  kernel(reinterpret_cast<A>(a), reinterpret_cast<B>(b), reinterpret_cast<C>(c), with.runs, with.columns, with.whole);
}

inline const Kernel* find_kernel(const std::string& name) {
#define FAKE_KERNEL(name) {#name, [](const Arguments& with) { call(&name, with); }}
#define FAKE_KERNELS(format)                                                                                     \
  FAKE_KERNEL(pack_float32_##format), FAKE_KERNEL(pack_float16_##format), FAKE_KERNEL(pack_bfloat16_##format),   \
      FAKE_KERNEL(unpack_float32_##format), FAKE_KERNEL(unpack_float16_##format), FAKE_KERNEL(unpack_bfloat16_##format)
  static const std::map<std::string, Kernel> all{FAKE_KERNELS(fp8), FAKE_KERNELS(int8)};
  const auto found = all.find(name);
  return found == all.end() ? nullptr : &found->second;
}

inline void run(Kernel kernel, unsigned blocks, unsigned threads, const Arguments& with) {
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (unsigned first = 0; first < threads; first += 32) {
      warp = {};
      for (const bool knows : {false, true}) {
        warp.knows = knows;
        for (threadIdx.x = first; threadIdx.x < first + 32; ++threadIdx.x) kernel(with);
      }
    }
  }
}

}  // namespace fake
