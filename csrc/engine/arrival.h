// The way of a received dict from the host's memory to a device's, beside whatever the caller's stream computes.
//
// Owns: the block, until the device has read it. Blocks? never, where the block is pinned; else while CUDA stages it.
// Thread: start on the caller's; the block is let go on the driver's thread, which may call nothing of CUDA: what may have to
//   is kept for the next call of sweep.
// Errors: kDevice; kUnsupported while a CUDA graph is captured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/stream.h"
#include "memory/receive_block.h"

namespace zmqpp::engine {

struct Target {
  void* memory;        // of a tensor on the device
  std::size_t offset;  // of its bytes in the block
  std::size_t size;
};

// The copies go to `arrivals`, a stream of the caller's on which `targets` were allocated; `current` waits for them.
void start_arrival(const std::shared_ptr<memory::ReceiveBlock>& block, const std::vector<Target>& targets,
                   device::Ordinal ordinal, device::StreamHandle arrivals, device::StreamHandle current);

// Frees segments and slabs whose last block was let go by a device. Called now and then, on a thread that may use CUDA.
void sweep_arrivals();

}  // namespace zmqpp::engine
