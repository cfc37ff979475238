// Layout of the control ring in a shared segment: records one behind another in a ring of bytes, each a control message.
// Prose: docs/wire_format.md, section "Shared segment"; a change touches both, and the version.
//
// Owns: nothing; the records lie in shared memory, so every value read here may change at any moment, and may be a lie.
// Blocks? never. Thread: pure functions. Errors: check_record and check_room throw kMalformed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/align.h"
#include "wire/constants.h"
#include "wire/head.h"

namespace zmqpp::wire {

inline constexpr std::uint64_t kControlRing = 64u << 10;         // bytes; a power of two, and of whole records' alignment
inline constexpr std::size_t kMaxRecordBody = kControlRing / 2 - 64;  // larger ones take the socket

// In front of the body; both together fill a multiple of 64 bytes. The body may go on at the ring's start.
struct alignas(64) ControlRecord {
  std::uint64_t number;    // 1, 2, 3, …
  std::uint64_t after;     // control messages of the session that the socket took before it
  std::uint64_t tag;
  std::uint64_t sent_ns;   // CLOCK_MONOTONIC
  std::uint32_t size;      // of the body
  std::uint32_t epoch;
  std::uint32_t checksum;  // crc32c of the body
  std::uint8_t route;
  std::uint8_t flags;      // kRecordChecked
  std::uint16_t zero;
  std::uint8_t unused[16];
};
static_assert(sizeof(ControlRecord) == 64);

inline constexpr std::uint8_t kRecordChecked = 1;

constexpr std::uint64_t record_bytes(std::uint64_t body) { return sizeof(ControlRecord) + align_up(body); }

// A private copy of a record, against what its ring holds: `held` bytes, written and not read.
void check_record(const ControlRecord& record, std::uint64_t number, std::uint64_t held, const Limits& limits);

// The bytes in a ring in which `written` were written and `read` read, one of which is the other side's word.
std::uint64_t check_held(std::uint64_t written, std::uint64_t read);

}  // namespace zmqpp::wire
