// What a dict with tensors on devices has besides: when they may be read, and when they have been.
//
// Owns: two events for each device. Blocks? never. Errors: kDevice; kUnsupported while a CUDA graph is captured.
// Thread: begin on the caller's, start and finish on the one that sends, the rest on any once the ticket says `started`.
// Lifetime: the ticket keeps it, so that a caller may wait for the copies whatever became of the link.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "device/copies.h"
#include "device/stream.h"

namespace zmqpp::engine {

class Flight {
 public:
  // The caller's current stream on each device that the dict has tensors on.
  using Streams = std::vector<std::pair<device::Ordinal, device::StreamHandle>>;

  // What is on the streams now is waited for, by the copies, not by the caller.
  static std::shared_ptr<Flight> begin(const Streams& streams);

  void start(device::Copies& copies);   // what follows waits for the caller's streams
  void finish(device::Copies& copies);  // all copies have been asked for
  void hold_back(device::Ordinal ordinal, device::StreamHandle stream) const;  // until the tensors there were read
  bool is_over() const;  // they were, all of them
  std::vector<device::Ordinal> devices() const;

 private:
  struct Part {
    device::Event ready;   // the tensors have their values
    device::Event copied;  // and have been read
  };
  std::vector<Part> parts_;
};

using FlightPtr = std::shared_ptr<Flight>;

}  // namespace zmqpp::engine
