// Pinned memory that received dicts lie in until a device has fetched them.
//
// Owns: the slab. Every lent block keeps it alive. Blocks? the constructor and destructor, while memory is pinned and let go.
// Thread: all safe; take_back also on the driver's thread. Errors: kResource, kPinned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "device/pinned.h"
#include "memory/arena.h"
#include "memory/receive_block.h"

namespace zmqpp::memory {

class PinnedSlab : public Lender, public std::enable_shared_from_this<PinnedSlab> {
 public:
  PinnedSlab(device::Device& device, std::size_t bytes);

  std::shared_ptr<ReceiveBlock> take(std::size_t size);  // null: no room at the moment
  void take_back(std::uint64_t lease, std::size_t size) noexcept override;
  const std::uint8_t* pinned_end() const noexcept override { return memory_.bytes() + memory_.size(); }

 private:
  static constexpr std::size_t kBlocks = 1024;  // at a time
  device::Pinned memory_;
  std::mutex mutex_;  // guards the following
  Arena arena_;
  std::size_t lent_ = 0;
};

// In `slab` as long as that is there and has room; else in ordinary memory, from where CUDA stages what goes to a device.
std::shared_ptr<ReceiveBlock> make_block(PinnedSlab* slab, std::size_t size);

}  // namespace zmqpp::memory
