// Copying payload.
//
// Beyond the size of the last-level cache ordinary stores read every line they are about to overwrite, and throw out
// what others keep there; non-temporal stores do neither. Figures: docs/performance.md.
//
// Owns: nothing. Blocks? never. Thread: safe. Errors: none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zmqpp::memory {

// `of`: size of the whole transfer that this copy is a part of, which decides how to store.
void copy_bytes(std::uint8_t* to, const std::uint8_t* from, std::size_t size, std::size_t of) noexcept;

std::size_t streaming_from();  // transfers of at least this size use non-temporal stores

}  // namespace zmqpp::memory
