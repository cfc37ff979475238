// The fixed head of every message, in front of its body in the same frame: writer and validating reader.
//
// Owns: nothing. Blocks? never. Thread: pure functions.
// Errors: read_head throws kMalformed, kVersion or kChecksum; it checks one head against the limits. Order between
// messages (session, sequence, chunk offsets) is checked by engine/assembly.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "wire/constants.h"

namespace zmqpp::wire {

struct Head {
  Kind kind = Kind::kBeat;
  Route route = Route::kLink;
  std::uint32_t flags = 0;
  std::uint32_t epoch = 0;
  std::uint64_t session = 0;
  std::uint64_t sequence = 0;
  std::uint64_t tag = 0;
  std::uint64_t offset = 0;  // kChunk: where this piece belongs in the payload
  std::uint64_t total = 0;   // kDict, kChunk: size of the whole payload
  std::uint32_t body_size = 0;
};

// Largest sizes a receiver accepts; all checked before anything is allocated.
struct Limits {
  std::size_t max_control_bytes = 64u << 20;
  std::uint64_t max_dict_bytes = std::uint64_t{4} << 30;

  std::size_t max_frame_bytes() const;  // head included, for ZMQ_MAXMSGSIZE
};

using HeadBytes = std::array<std::uint8_t, kHeadSize>;

void write_head(const Head& head, std::uint8_t* out);

// Sums up a complete frame, in which write_head has put kFlagChecked.
void write_checksum(std::uint8_t* frame, std::size_t size);

// Of the whole frame [bytes, + size), only the head is looked at, unless it is checked; the rest must be as long as the
// head says.
Head read_head(const void* bytes, std::size_t size, const Limits& limits);

const char* kind_name(Kind kind);

}  // namespace zmqpp::wire
