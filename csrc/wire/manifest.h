// Bounds check of a manifest before Python decodes it.
//
// A msgpack array announces its length before its items: a decoder that trusts it allocates 32 GiB for 5 bytes.
// This walk accepts exactly one value of the subset we write (no maps, no extensions), fully inside the bytes.
//
// Owns: nothing. Blocks? never. Thread: pure. Errors: kMalformed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zmqpp::wire {

void check_manifest(const void* bytes, std::size_t size);

// Where the parts of a dict message lie: [u32 manifest size | manifest | zeros to 64 | inline payload].
struct DictBody {
  std::size_t manifest_offset;
  std::size_t manifest_size;
  std::size_t payload_offset;
};

DictBody split_dict_body(const void* body, std::size_t size, std::uint64_t total, bool inline_payload);

inline constexpr std::size_t kManifestPrefix = 4;

}  // namespace zmqpp::wire
