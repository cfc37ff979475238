// Numbers of the wire format. The prose is docs/wire_format.md; a change touches both, and the version.
//
// Owns: nothing. Blocks? never. Thread: constants. Errors: none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zmqpp::wire {

inline constexpr char kMagic[4] = {'Z', 'M', 'Q', 'P'};
inline constexpr std::uint16_t kVersion = 4;
inline constexpr std::size_t kHeadSize = 64;

enum class Kind : std::uint8_t {
  kHello = 1,    // first message of a session: who is speaking
  kDict = 2,     // manifest, and the payload when it is small
  kChunk = 3,    // the next piece of the latest dict's payload
  kControl = 4,  // opaque bytes for the stage protocol
  kBye = 5,      // clean close, nothing follows
  kBeat = 6,     // sign of life of an idle sender
  kCancel = 7,   // the rest of the latest dict's payload will not come: forget the dict
  kNudge = 8,    // there is something in the shared segment
};

enum class Route : std::uint8_t { kLink = 0, kRequest = 1, kReply = 2, kNotice = 3 };

inline constexpr std::uint32_t kFlagInline = 1;   // kDict: the payload follows the manifest in this message
inline constexpr std::uint32_t kFlagChecked = 2;  // the checksum field holds the crc32c of all the rest of the message

inline constexpr std::size_t kMaxHelloBytes = 1024;                  // names and numbers
inline constexpr std::size_t kMaxManifestBytes = 16u << 20;          // about 200 000 tensors
inline constexpr std::size_t kMaxInlineBytes = 1u << 20;             // above, chunks always win
inline constexpr std::size_t kMaxChunkBytes = 16u << 20;             // what a receiver must be ready to hold at once
inline constexpr std::size_t kMaxControlBytes = 1u << 30;            // upper end of the configurable limit
inline constexpr std::uint64_t kMaxDictBytes = std::uint64_t{1} << 40;  // upper end of the configurable limit
inline constexpr int kMaxManifestDepth = 80;                         // 64 levels of values, and the arrays around them

}  // namespace zmqpp::wire
