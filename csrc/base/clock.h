// Nanoseconds of CLOCK_MONOTONIC: comparable between the processes of one host.
//
// Owns: nothing. Blocks? never. Thread: safe. Errors: none.
#pragma once

#include <chrono>
#include <cstdint>

namespace zmqpp {

inline std::uint64_t now_ns() noexcept {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count());
}

}  // namespace zmqpp
