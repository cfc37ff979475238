// The way of a received dict from the host's memory to a device's, beside whatever the caller's stream computes.
//
// Owns: the block, until the device has read it; an event. Blocks? never, where the block is pinned; else while CUDA stages it.
// Thread: start and finish on the caller's, the rest on any after that; the block is let go on the driver's thread, which may
//   call nothing of CUDA: what may have to is kept for the next call of sweep.
// Errors: kDevice; kUnsupported while a CUDA graph is captured, where what was asked for would become part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/deadline.h"
#include "device/stream.h"
#include "memory/receive_block.h"

namespace zmqpp::engine {

struct Target {
  void* memory;        // of a tensor on the device
  std::size_t offset;  // of its bytes in the block
  std::size_t size;
};

class Arrival {
 public:
  // The copies go to `arrivals`, a stream of the caller's on which `targets` were allocated.
  static std::shared_ptr<Arrival> start(const std::shared_ptr<memory::ReceiveBlock>& block, const std::vector<Target>& targets,
                                        device::Ordinal ordinal, device::StreamHandle arrivals);
  ~Arrival();
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;

  void finish();  // what the caller has put on the stream by now belongs to it: there is no more
  void hold_back(device::StreamHandle current) const;  // until all of it is there; the caller goes on
  bool is_over() const;                                // all of it is there

 private:
  Arrival(device::Device& on, std::shared_ptr<memory::ReceiveBlock> block, device::StreamHandle stream);
  void let_go();

  device::Device& on_;
  std::shared_ptr<memory::ReceiveBlock> block_;  // null: the driver's thread has it
  const device::StreamHandle stream_;
  device::Event arrived_;
};

// All of that at once: `current` waits for the copies. Throws before it has begun anything.
std::shared_ptr<Arrival> start_arrival(const std::shared_ptr<memory::ReceiveBlock>& block, const std::vector<Target>& targets,
                                       device::Ordinal ordinal, device::StreamHandle arrivals, device::StreamHandle current);

// Until nothing that has begun is still being read by a device. False: it takes longer.
bool await_arrivals(const Deadline& deadline) noexcept;

// Frees segments and slabs whose last block was let go by a device. Called now and then, on a thread that may use CUDA.
void sweep_arrivals();

}  // namespace zmqpp::engine
