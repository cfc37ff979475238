// Memory a received dict lies in. Tensors are views of it, so it may outlive the link, and the process's use of us.
//
// Owns: its bytes; the last reference hands them to a process-wide cache of size classes for the next dict
//   (large fresh allocations are bound by page faults). Small blocks go straight to the allocator.
// Blocks? never. Thread: all safe. Errors: kResource when the machine has no memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace zmqpp::memory {

class ReceiveBlock {
 public:
  static std::shared_ptr<ReceiveBlock> make(std::size_t size);
  ~ReceiveBlock();
  ReceiveBlock(const ReceiveBlock&) = delete;
  ReceiveBlock& operator=(const ReceiveBlock&) = delete;

  std::uint8_t* bytes() const { return bytes_; }
  std::size_t size() const { return size_; }

 private:
  ReceiveBlock(std::uint8_t* bytes, std::size_t size, std::size_t capacity)
      : bytes_(bytes), size_(size), capacity_(capacity) {}
  std::uint8_t* bytes_;
  std::size_t size_;
  std::size_t capacity_;  // the size class
};

std::size_t size_class(std::size_t size);    // smallest class that holds `size`
std::size_t cached_receive_bytes();          // held for reuse at the moment
void drop_cached_receive_blocks();           // gives them back to the system

}  // namespace zmqpp::memory
