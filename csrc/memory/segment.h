// A file in /dev/shm that two processes map: made and named by one, opened by the other.
//
// Owns: the mapping; the maker also the name, until either side calls unlink_name. The maker holds a lock on the file while it lives, so
//   that a name whose maker was killed can be told from one in use, in whatever container.
// Blocks? pin, for a moment. Thread: commit, pin, hold and unlink_name from one thread at a time, the rest is safe.
// Errors: kSharedMemory, with the reason; pin kPinned.
// Memory: pages are reserved by commit before they are written, or a full /dev/shm would end the process by SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "device/pinned.h"

namespace zmqpp::memory {

class Segment {
 public:
  static Segment create(std::size_t bytes, std::size_t committed);  // `bytes` of address space
  static Segment open(const std::string& name, std::size_t bytes);  // fails if it has another size
  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&&) = delete;
  ~Segment();

  const std::string& name() const { return name_; }  // without the folder
  std::uint8_t* bytes() const { return bytes_; }
  std::size_t size() const { return size_; }

  bool commit(std::size_t from, std::size_t size);  // false: /dev/shm has no more room
  void pin(device::Device& device, std::size_t from, std::size_t size);  // for copies by any device, once; whole pages
  void unpin() noexcept { pinned_.reset(); }
  void abandon() noexcept;                          // a device that no longer answers may still use it: it stays mapped
  void unlink_name() noexcept;                      // nobody else shall open it; the memory stays
  bool hold() noexcept;           // opened: until the last process that has this one is gone. false: the system cannot
  bool is_held() const noexcept;  // made here: somebody holds it; also when the system cannot say

 private:
  Segment() = default;
  std::string name_;
  int fd_ = -1;
  bool named_ = false;  // as far as this side knows
  bool made_ = false;   // here: else the name is left alone unless asked
  std::uint8_t* bytes_ = nullptr;
  std::size_t size_ = 0;
  std::unique_ptr<device::Registered> pinned_;
};

// How much of `wanted` may be pinned, which takes it at once: others shall find room too.
std::size_t pinnable(std::size_t wanted) noexcept;

// Removes the names whose makers are gone. Cheap when there are none.
void remove_dead_segments() noexcept;

std::string boot_id();  // of this machine's kernel since it started; empty when unknown

}  // namespace zmqpp::memory
