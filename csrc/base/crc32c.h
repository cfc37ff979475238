// CRC-32C (Castagnoli), the checksum of iSCSI and ext4. Source: RFC 3720, section 12.1 and appendix B.4.
//
// Owns: nothing. Blocks? never. Thread: safe. Errors: none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zmqpp {

// Continues `crc`, which is 0 at the start, over more bytes.
std::uint32_t crc32c(std::uint32_t crc, const void* bytes, std::size_t size) noexcept;

const char* crc32c_implementation() noexcept;  // "sse4.2", "armv8" or "table"

}  // namespace zmqpp
