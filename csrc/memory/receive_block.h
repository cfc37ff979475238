// Memory a received dict lies in. Tensors are views of it, so it may outlive the link, and the process's use of us.
//
// Owns: its bytes, or a lease on bytes of a shared segment. The last reference hands memory to a process-wide cache of
//   size classes for the next dict (large fresh allocations are bound by page faults), and a lease to its lender.
// Blocks? never. Thread: all safe. Errors: kResource when the machine has no memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace zmqpp::memory {

// Who lends memory that it wants back.
class Lender {
 public:
  virtual ~Lender() = default;
  virtual void take_back(std::uint64_t lease, std::size_t size) noexcept = 0;  // on any thread
  virtual const std::uint8_t* pinned_end() const noexcept { return nullptr; }    // up to where devices reach it by themselves
};

// Bytes of a block that are not in it, but on a device.
struct Remote {
  std::uint64_t offset;  // in the block
  std::uint64_t size;
  std::uint64_t address;
};

class ReceiveBlock {
 public:
  static std::shared_ptr<ReceiveBlock> make(std::size_t size);
  static std::shared_ptr<ReceiveBlock> lent(std::shared_ptr<Lender> lender, std::uint64_t lease, std::uint8_t* bytes,
                                            std::size_t size);
  ReceiveBlock(std::uint8_t* bytes, std::size_t size, std::size_t capacity, std::shared_ptr<Lender> lender = nullptr,
               std::uint64_t lease = 0);
  ~ReceiveBlock();
  ReceiveBlock(const ReceiveBlock&) = delete;
  ReceiveBlock& operator=(const ReceiveBlock&) = delete;

  std::uint8_t* bytes() const { return bytes_; }
  std::size_t size() const { return size_; }
  const std::shared_ptr<Lender>& lender() const { return lender_; }
  const std::vector<Remote>& remote() const { return remote_; }
  void set_remote(std::vector<Remote> remote) { remote_ = std::move(remote); }  // before anybody else has it

 private:
  std::uint8_t* bytes_;
  std::size_t size_;
  std::size_t capacity_;  // the size class
  std::shared_ptr<Lender> lender_;  // null: the memory is its own
  std::uint64_t lease_;
  std::vector<Remote> remote_;
};

std::size_t size_class(std::size_t size);    // smallest class that holds `size`
std::size_t cached_receive_bytes();          // held for reuse at the moment
void drop_cached_receive_blocks();           // gives them back to the system
std::uint64_t receive_allocations();         // how often memory came from the system, not from the cache

}  // namespace zmqpp::memory
