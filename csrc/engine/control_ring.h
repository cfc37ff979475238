// The two ends of the control ring in a shared segment: control messages from one process to another without ZeroMQ's
// threads between them.
//
// Owns: their own position; the memory is the segment's, which outlives them. Blocks? never.
// Thread: one writer and one reader at a time; has_record is safe everywhere. Errors: kMalformed, kChecksum.
// Order: a record says how many control messages took the socket before it, and is not read before those.
// Trust: the other side is another process. A record is copied before it is checked, and only private memory is parsed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "net/message.h"
#include "wire/control_record.h"
#include "wire/ring.h"

namespace zmqpp::engine {

// What a control message carries besides its body.
struct ControlMark {
  wire::Route route = wire::Route::kLink;
  std::uint64_t tag = 0;
  std::uint32_t epoch = 0;
};

class ControlWriter {
 public:
  ControlWriter(std::uint8_t* segment, bool checksum) : segment_(segment), checksum_(checksum) {}

  // False: there is no room for it now, or never. `after`: control messages that the socket took before.
  bool write(const ControlMark& mark, std::uint64_t after, const std::uint8_t* body, std::size_t size);

 private:
  wire::SegmentHead& head() const { return *reinterpret_cast<wire::SegmentHead*>(segment_); }
  void put(std::uint64_t at, const std::uint8_t* from, std::size_t size) const;

  std::uint8_t* const segment_;
  const bool checksum_;
  std::uint64_t written_ = 0;
  std::uint64_t records_ = 0;
};

// A whole frame, as if the socket had brought it.
struct ControlFrame {
  wire::Head head;
  net::Message frame;
  std::uint64_t sent_ns;
};

class ControlReader {
 public:
  ControlReader(std::uint8_t* segment, const wire::Limits& limits) : segment_(segment), limits_(limits) {}

  bool has_record() const;  // that take has not refused already: it would be called in vain
  std::optional<ControlFrame> take(std::uint64_t seen);  // `seen`: control messages that the socket brought
  void leave() { left_.store(read_.load(std::memory_order_relaxed), std::memory_order_relaxed); }  // there is no place for it

 private:
  wire::SegmentHead& head() const { return *reinterpret_cast<wire::SegmentHead*>(segment_); }
  void get(std::uint64_t at, std::uint8_t* to, std::size_t size) const;

  std::uint8_t* const segment_;
  const wire::Limits limits_;
  static constexpr std::uint64_t kNothing = 1;  // no record begins there
  std::atomic<std::uint64_t> read_{0};
  std::atomic<std::uint64_t> left_{kNothing};  // where the record lies that has to wait
  std::uint64_t records_ = 0;
};

}  // namespace zmqpp::engine
