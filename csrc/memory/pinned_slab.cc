#include "memory/pinned_slab.h"

namespace zmqpp::memory {

PinnedSlab::PinnedSlab(device::Device& device, std::size_t bytes) : memory_(device, bytes), arena_(bytes, kBlocks) {}

std::shared_ptr<ReceiveBlock> PinnedSlab::take(std::size_t size) {
  const std::lock_guard lock(mutex_);
  if (lent_ == kBlocks) return nullptr;
  const auto offset = arena_.take(size);
  if (!offset) return nullptr;
  ++lent_;
  return ReceiveBlock::lent(shared_from_this(), *offset, memory_.bytes() + *offset, size);
}

void PinnedSlab::take_back(std::uint64_t lease, std::size_t size) noexcept {
  if (!device::is_usable()) return;  // a fork's copy of the tensor died; the mutex may be held by a thread that is not here
  const std::lock_guard lock(mutex_);
  arena_.give_back(lease, size);
  --lent_;
}

std::shared_ptr<ReceiveBlock> make_block(PinnedSlab* slab, std::size_t size) {
  std::shared_ptr<ReceiveBlock> block = slab != nullptr ? slab->take(size) : nullptr;
  return block ? block : ReceiveBlock::make(size);
}

}  // namespace zmqpp::memory
