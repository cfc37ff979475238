// Host memory that the device reads and writes by itself: pages that stay where they are.
//
// Owns: Pinned its memory; Registered only the registration of memory that somebody else keeps for longer.
// Blocks? both constructors and destructors: pinning takes about a millisecond for 4 MB, and letting go waits for the device.
//   So when a link opens and closes, never in between. Thread: any. Errors: kPinned; the destructors swallow.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device.h"

namespace zmqpp::device {

class Pinned {
 public:
  Pinned(Device& device, std::size_t size);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  std::uint8_t* bytes() const { return bytes_; }
  std::size_t size() const { return size_; }

 private:
  Device& device_;
  std::uint8_t* bytes_ = nullptr;
  const std::size_t size_;
};

class Registered {
 public:
  Registered(Device& device, void* bytes, std::size_t size);
  ~Registered();
  Registered(const Registered&) = delete;
  Registered& operator=(const Registered&) = delete;
  void abandon() { abandoned_ = true; }  // stays registered for the life of the process

 private:
  Device& device_;
  void* const bytes_;
  bool abandoned_ = false;
};

}  // namespace zmqpp::device
