// One accepted send: everything the sender thread needs, and nothing of Python's.
//
// Owns: the first message's frame, whose head the sender fills in. Does not own the payload spans: their owner keeps them until the ticket is settled.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "device/copies.h"
#include "engine/flight.h"
#include "engine/stats.h"
#include "engine/ticket.h"
#include "net/message.h"
#include "wire/head.h"

namespace zmqpp::engine {

struct Span {
  const std::uint8_t* bytes;
  std::size_t size;
  device::Ordinal ordinal = kHost;  // of the device it is on
  static constexpr device::Ordinal kHost = -1;
};

struct Outgoing {
  wire::Kind kind = wire::Kind::kControl;
  wire::Route route = wire::Route::kLink;
  std::uint32_t flags = 0;
  std::uint32_t epoch = 0;
  std::uint64_t tag = 0;
  std::uint64_t total = 0;
  net::Message frame;
  std::size_t held_bytes = 0;  // to give back to the budget when this item is done
  std::vector<Span> payload;   // of a chunked dict, laid out at aligned offsets
  SendTicketPtr ticket;        // control messages have none
  FlightPtr flight;            // of a dict that has tensors on devices
  std::uint64_t accepted_ns = 0;
  bool in_flight = false;      // counted as such: its source is still to be read
  Deadline deadline = Deadline::never();
  bool relayed = false;
};

// Walks a body chunk by chunk: spans lie one after another, each starting at a multiple of kAlign. The first `plain`
// ones (a manifest) are not counted as copies of payload.
class PayloadReader {
 public:
  explicit PayloadReader(const std::vector<Span>& spans, std::size_t plain = 0) : spans_(&spans), plain_(plain) {}

  // Fills `out` with the next `size` bytes, gaps as zeros. `of`: see memory::copy_bytes. What is on a device is only asked
  // for: `copies` must be there, and `out` is filled when its next mark is over.
  void copy_next(std::uint8_t* out, std::size_t size, std::size_t of, device::Copies* copies = nullptr);

  std::size_t copies() const { return copies_; }  // of payload, so far

 private:
  const std::vector<Span>* spans_;
  std::size_t plain_;
  std::size_t copies_ = 0;
  std::size_t index_ = 0;   // span being read
  std::size_t within_ = 0;  // bytes of it, and of the gap behind it, already passed
};

// The source of `item` is read no more.
inline void leave_flight(Outgoing& item, Stats& stats) {
  if (std::exchange(item.in_flight, false)) subtract(stats.in_flight);
}

std::uint64_t payload_size(const std::vector<Span>& spans);
bool is_on_device(const std::vector<Span>& spans);  // any of them
std::size_t count_on_devices(const std::vector<Span>& spans);
std::uint64_t bytes_on_devices(const std::vector<Span>& spans);  // each aligned

// The body of a dict as it lies in a shared segment: its manifest, then its payload.
std::vector<Span> body_spans(Outgoing& item);
std::uint32_t manifest_size(Outgoing& item);

}  // namespace zmqpp::engine
