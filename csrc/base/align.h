// The alignment of every buffer in a payload, in memory and on the wire: one cache line.
//
// Owns: nothing. Blocks? never. Thread: constants. Errors: none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zmqpp {

inline constexpr std::size_t kAlign = 64;

constexpr std::uint64_t align_up(std::uint64_t size) { return (size + (kAlign - 1)) / kAlign * kAlign; }

}  // namespace zmqpp
