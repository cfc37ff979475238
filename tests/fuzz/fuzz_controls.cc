// A control ring as its reader finds it: [u8 seen | u8 repair | u32 bytes written | the ring, from its start].
// What is accepted has the bytes that lie in the ring, and lies within what was written.
//
// `repair` makes up for what random changes break first: bit 0 puts in the expected numbers, bit 1 the checksums, bit 2
// written bytes that can be.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>

#include "base/crc32c.h"
#include "engine/control_ring.h"
#include "engine/frame.h"
#include "fuzz.h"
#include "net/zmq_api.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT

namespace {

const wire::Limits kLimits{.max_control_bytes = 8192};

// Up to where the records are such that the next one can be found.
void repair_records(std::uint8_t* ring, std::uint64_t written, std::uint8_t repair) {
  std::uint64_t at = 0;
  for (std::uint64_t number = 1; at + sizeof(wire::ControlRecord) <= std::min(written, wire::kControlRing); ++number) {
    auto& record = *reinterpret_cast<wire::ControlRecord*>(ring + at);
    if (repair & 1) record.number = number;
    if (record.size > wire::kControlRing - at - sizeof record) return;
    if (repair & 2) record.checksum = crc32c(0, ring + at + sizeof record, record.size);
    at += wire::record_bytes(record.size);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static auto* const segment = [] {
    const char* library = std::getenv("ZMQPP_ZMQ_LIBRARY");
    net::load_zmq(library == nullptr ? "" : library);
    return static_cast<std::uint8_t*>(std::aligned_alloc(wire::kPage, wire::payload_offset()));
  }();
  std::uint8_t* const ring = segment + wire::control_offset();
  fuzz::Input input(data, size);
  const std::uint64_t seen = input.number<std::uint8_t>();
  const auto repair = input.number<std::uint8_t>();
  std::uint64_t written = input.number<std::uint32_t>();
  if (repair & 4) written = written % (wire::kControlRing + 1) / 64 * 64;
  auto* const head = new (segment) wire::SegmentHead{};
  std::memset(ring, 0, wire::kControlRing);
  std::copy_n(input.rest(), std::min<std::size_t>(input.left(), wire::kControlRing), ring);
  repair_records(ring, written, repair);
  head->control_written = written;

  ControlReader reader(segment, kLimits);
  std::uint64_t at = 0;
  fuzz::accepts([&] {
    while (std::optional<ControlFrame> got = reader.take(seen)) {
      const std::size_t body = body_size(got->frame);
      fuzz::require(body == got->head.body_size && body <= kLimits.max_control_bytes, "a body within the limit");
      fuzz::require(at + wire::record_bytes(body) <= written, "a record within what was written");
      fuzz::require(std::memcmp(body_of(got->frame), ring + at + sizeof(wire::ControlRecord), body) == 0, "its bytes");
      at += wire::record_bytes(body);
      fuzz::require(head->control_read == at, "what is read is said");
    }
  });
  return 0;
}
