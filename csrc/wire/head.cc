#include "wire/head.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "base/align.h"
#include "base/crc32c.h"
#include "base/error.h"

namespace zmqpp::wire {
namespace {

static_assert(std::endian::native == std::endian::little, "the head is copied as it lies in memory");

// Byte positions, as in docs/wire_format.md.
enum At : std::size_t {
  kAtMagic = 0,
  kAtVersion = 4,
  kAtKind = 6,
  kAtRoute = 7,
  kAtFlags = 8,
  kAtEpoch = 12,
  kAtSession = 16,
  kAtSequence = 24,
  kAtTag = 32,
  kAtOffset = 40,
  kAtTotal = 48,
  kAtBodySize = 56,
  kAtChecksum = 60,
};

template <typename T>
void put(std::uint8_t* out, At at, T value) {
  std::memcpy(out + at, &value, sizeof value);
}

template <typename T>
T get(const std::uint8_t* in, At at) {
  T value;
  std::memcpy(&value, in + at, sizeof value);
  return value;
}

[[noreturn]] void malformed(const std::string& detail) { throw Error(Code::kMalformed, "receive", detail); }

void require(bool holds, const char* what, std::uint64_t found) {
  if (!holds) malformed(std::string(what) + " (found " + std::to_string(found) + ")");
}

void require_at_most(const char* what, std::uint64_t size, std::uint64_t limit) {
  if (size <= limit) return;
  malformed(std::string(what) + " of " + std::to_string(size) + " bytes, the limit is " + std::to_string(limit));
}

void check_magic_and_version(const std::uint8_t* in) {
  if (std::memcmp(in + kAtMagic, kMagic, sizeof kMagic) != 0) malformed("the message does not start with ZMQP");
  const auto version = get<std::uint16_t>(in, kAtVersion);
  if (version == kVersion) return;
  throw Error(Code::kVersion, "receive",
              "the peer speaks wire version " + std::to_string(version) + ", this side version " +
                  std::to_string(kVersion) + "; install the same zmqpp release on both");
}

// Everything but the checksum itself, which is the head's last field.
std::uint32_t checksum_of(const std::uint8_t* frame, std::size_t size) {
  return crc32c(crc32c(0, frame, kAtChecksum), frame + kHeadSize, size - kHeadSize);
}

void check_sum(std::uint32_t flags, const std::uint8_t* frame, std::size_t size) {
  const auto announced = get<std::uint32_t>(frame, kAtChecksum);
  if ((flags & kFlagChecked) == 0) return require(announced == 0, "a checksum without its flag", announced);
  if (announced == checksum_of(frame, size)) return;
  throw Error(Code::kChecksum, "receive",
              "the checksum of a message of " + std::to_string(size) + " bytes does not match: it changed on its way");
}

void check_dict(const Head& head, const Limits& limits) {
  require(head.offset == 0, "a dict must start at offset 0", head.offset);
  require((head.flags & ~(kFlagInline | kFlagChecked)) == 0, "unknown flags on a dict", head.flags);
  require_at_most("dict payload", head.total, limits.max_dict_bytes);
  const bool inline_payload = (head.flags & kFlagInline) != 0;
  if (inline_payload) require_at_most("inline payload", head.total, kMaxInlineBytes);
  require_at_most("dict message", head.body_size, kMaxManifestBytes + (inline_payload ? head.total + 2 * kAlign : 0));
}

void check_chunk(const Head& head, const Limits& limits) {
  require((head.flags & ~kFlagChecked) == 0, "unknown flags on a chunk", head.flags);
  require(head.body_size > 0, "a chunk must carry bytes", head.body_size);
  require_at_most("dict payload", head.total, limits.max_dict_bytes);
  require_at_most("chunk", head.body_size, kMaxChunkBytes);
  if (head.offset > head.total || head.body_size > head.total - head.offset) {
    malformed("chunk [" + std::to_string(head.offset) + ", +" + std::to_string(head.body_size) +
              ") lies outside the announced " + std::to_string(head.total) + " bytes");
  }
}

void check_plain(const Head& head, std::size_t limit) {
  require((head.flags & ~kFlagChecked) == 0, "unknown flags", head.flags);
  require(head.offset == 0 && head.total == 0, "offset and total belong to dicts", head.offset | head.total);
  require_at_most(kind_name(head.kind), head.body_size, limit);
}

void check_kind(const Head& head, const Limits& limits) {
  switch (head.kind) {
    case Kind::kHello: return check_plain(head, kMaxHelloBytes);
    case Kind::kDict: return check_dict(head, limits);
    case Kind::kChunk: return check_chunk(head, limits);
    case Kind::kControl: return check_plain(head, limits.max_control_bytes);
    case Kind::kBye:
    case Kind::kBeat:
    case Kind::kCancel:
    case Kind::kNudge: return check_plain(head, 0);
  }
  malformed("unknown message kind " + std::to_string(static_cast<int>(head.kind)));
}

}  // namespace

std::size_t Limits::max_frame_bytes() const {
  return kHeadSize + std::max({max_control_bytes, kMaxChunkBytes, kMaxManifestBytes + kMaxInlineBytes + 2 * kAlign});
}

void write_head(const Head& head, std::uint8_t* out) {
  std::memcpy(out + kAtMagic, kMagic, sizeof kMagic);
  put(out, kAtVersion, kVersion);
  put(out, kAtKind, static_cast<std::uint8_t>(head.kind));
  put(out, kAtRoute, static_cast<std::uint8_t>(head.route));
  put(out, kAtFlags, head.flags);
  put(out, kAtEpoch, head.epoch);
  put(out, kAtSession, head.session);
  put(out, kAtSequence, head.sequence);
  put(out, kAtTag, head.tag);
  put(out, kAtOffset, head.offset);
  put(out, kAtTotal, head.total);
  put(out, kAtBodySize, head.body_size);
  put(out, kAtChecksum, std::uint32_t{0});
}

void write_checksum(std::uint8_t* frame, std::size_t size) { put(frame, kAtChecksum, checksum_of(frame, size)); }

Head read_head(const void* bytes, std::size_t size, const Limits& limits) {
  if (size < kHeadSize) malformed("a message of " + std::to_string(size) + " bytes, its head alone has 64");
  const std::size_t body_size = size - kHeadSize;
  const auto* in = static_cast<const std::uint8_t*>(bytes);
  check_magic_and_version(in);
  Head head;
  head.kind = static_cast<Kind>(get<std::uint8_t>(in, kAtKind));
  head.route = static_cast<Route>(get<std::uint8_t>(in, kAtRoute));
  head.flags = get<std::uint32_t>(in, kAtFlags);
  head.epoch = get<std::uint32_t>(in, kAtEpoch);
  head.session = get<std::uint64_t>(in, kAtSession);
  head.sequence = get<std::uint64_t>(in, kAtSequence);
  head.tag = get<std::uint64_t>(in, kAtTag);
  head.offset = get<std::uint64_t>(in, kAtOffset);
  head.total = get<std::uint64_t>(in, kAtTotal);
  head.body_size = get<std::uint32_t>(in, kAtBodySize);
  if (head.body_size != body_size) {
    malformed("the head announces a body of " + std::to_string(head.body_size) + " bytes, " +
              std::to_string(body_size) + " came");
  }
  check_sum(head.flags, in, size);
  const auto route = static_cast<unsigned>(head.route);
  require(route == 0 || (head.kind == Kind::kControl && route <= static_cast<unsigned>(Route::kNotice)),
          "unknown route", route);
  check_kind(head, limits);
  return head;
}

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kHello: return "hello";
    case Kind::kDict: return "dict";
    case Kind::kChunk: return "chunk";
    case Kind::kControl: return "control message";
    case Kind::kBye: return "bye";
    case Kind::kBeat: return "beat";
    case Kind::kCancel: return "cancel";
    case Kind::kNudge: return "nudge";
  }
  return "unknown";
}

}  // namespace zmqpp::wire
