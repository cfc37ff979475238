#include "engine/control_ring.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "engine/frame.h"

namespace zmqpp::engine {
namespace {

std::uint8_t* place(std::uint8_t* segment, std::uint64_t at) {
  return segment + wire::control_offset() + at % wire::kControlRing;
}

std::uint64_t until_end(std::uint64_t at) { return wire::kControlRing - at % wire::kControlRing; }

}  // namespace

bool ControlWriter::write(const ControlMark& mark, std::uint64_t after, const std::uint8_t* body, std::size_t size) {
  if (size > wire::kMaxRecordBody) return false;
  const std::uint64_t held = wire::check_held(written_, head().control_read.load(std::memory_order_acquire));
  if (wire::record_bytes(size) > wire::kControlRing - held) return false;
  wire::ControlRecord record{};
  record.number = ++records_;
  record.after = after;
  record.tag = mark.tag;
  record.sent_ns = now_ns();
  record.size = static_cast<std::uint32_t>(size);
  record.epoch = mark.epoch;
  record.checksum = checksum_ ? crc32c(0, body, size) : 0;
  record.route = static_cast<std::uint8_t>(mark.route);
  record.flags = checksum_ ? wire::kRecordChecked : 0;
  put(written_, reinterpret_cast<const std::uint8_t*>(&record), sizeof record);
  put(written_ + sizeof record, body, size);
  written_ += wire::record_bytes(size);
  head().control_written.store(written_, std::memory_order_release);
  return true;
}

void ControlWriter::put(std::uint64_t at, const std::uint8_t* from, std::size_t size) const {
  if (size == 0) return;  // `from` may be null
  const std::size_t first = std::min<std::uint64_t>(size, until_end(at));
  std::memcpy(place(segment_, at), from, first);
  std::memcpy(place(segment_, at + first), from + first, size - first);
}

bool ControlReader::has_record() const {
  const std::uint64_t read = read_.load(std::memory_order_relaxed);
  return head().control_written.load(std::memory_order_acquire) != read && left_.load(std::memory_order_relaxed) != read;
}

std::optional<ControlFrame> ControlReader::take(std::uint64_t seen) {
  const std::uint64_t read = read_.load(std::memory_order_relaxed);
  const std::uint64_t held = wire::check_held(head().control_written.load(std::memory_order_acquire), read);
  if (held == 0) return std::nullopt;
  wire::ControlRecord record;
  get(read, reinterpret_cast<std::uint8_t*>(&record), sizeof record);
  wire::check_record(record, records_ + 1, held, limits_);
  if (record.after > seen) {
    leave();
    return std::nullopt;
  }
  net::Message frame(wire::kHeadSize + record.size);
  get(read + sizeof record, body_of(frame), record.size);
  const bool checked = (record.flags & wire::kRecordChecked) != 0;
  if (checked && crc32c(0, body_of(frame), record.size) != record.checksum) {
    throw Error(Code::kChecksum, "receive",
                "the checksum of a control message of " + std::to_string(record.size) +
                    " bytes in the shared segment does not match");
  }
  ++records_;
  const std::uint64_t next = read + wire::record_bytes(record.size);
  read_.store(next, std::memory_order_relaxed);
  head().control_read.store(next, std::memory_order_release);
  const wire::Head head{.kind = wire::Kind::kControl, .route = static_cast<wire::Route>(record.route),
                        .epoch = record.epoch, .tag = record.tag, .body_size = record.size};
  return ControlFrame{head, std::move(frame), record.sent_ns};
}

void ControlReader::get(std::uint64_t at, std::uint8_t* to, std::size_t size) const {
  const std::size_t first = std::min<std::uint64_t>(size, until_end(at));
  std::memcpy(to, place(segment_, at), first);
  std::memcpy(to + first, place(segment_, at + first), size - first);
}

}  // namespace zmqpp::engine
