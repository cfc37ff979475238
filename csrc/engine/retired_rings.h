// Device memory of links that are over, which their receivers may still have open: freeing it before is undefined in CUDA.
//
// Owns: each one's memory, and its segment, where the receiver says that it has closed it; process-wide, until a sweep finds
//   that, or the receiver dead for some seconds.
// Blocks? what frees: CUDA may wait for the device. Thread: all safe. Errors: none. Fork: a child leaves all of it alone.
#pragma once

#include <cstddef>
#include <memory>

#include "device/peer_memory.h"
#include "memory/segment.h"

namespace zmqpp::engine {

// At once, or when the receiver lets go. An offer that nobody has answered is withdrawn.
void retire_ring(std::unique_ptr<device::Exported> memory, memory::Segment segment) noexcept;

// Called when a link opens or closes, and when device memory is made.
void sweep_rings() noexcept;

std::size_t count_retired_rings();

}  // namespace zmqpp::engine
