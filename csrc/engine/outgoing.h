// One accepted send: everything the sender thread needs, and nothing of Python's.
//
// Owns: the first message's frame, whose head the sender fills in. Does not own the payload spans: their owner keeps them until the ticket is settled.
#pragma once

#include <cstdint>
#include <vector>

#include "base/deadline.h"
#include "engine/ticket.h"
#include "net/message.h"
#include "wire/head.h"

namespace zmqpp::engine {

struct Span {
  const std::uint8_t* bytes;
  std::size_t size;
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
  Deadline deadline = Deadline::never();
  bool relayed = false;
};

// Walks a payload chunk by chunk: spans lie one after another, each starting at a multiple of kAlign.
class PayloadReader {
 public:
  explicit PayloadReader(const std::vector<Span>& spans) : spans_(&spans) {}

  // Fills `out` with the next `size` bytes of the payload, gaps as zeros. Returns the number of copies made.
  std::size_t copy_next(std::uint8_t* out, std::size_t size);

 private:
  const std::vector<Span>* spans_;
  std::size_t index_ = 0;   // span being read
  std::size_t within_ = 0;  // bytes of it, and of the gap behind it, already passed
};

std::uint64_t payload_size(const std::vector<Span>& spans);

}  // namespace zmqpp::engine
