// A CUDA device of this process, by the number that torch uses for it as well.
//
// Owns: a hold on the device's primary context, which torch uses too, for the life of the process: its memory and
//   streams are then each other's. Blocks? of, the first time for a device: making its context takes a second.
// Thread: all safe. Errors: kDevice: no driver, no such device, or the driver's own words.
#pragma once

#include <cstddef>
#include <new>
#include <string>

#include "device/driver.h"

namespace zmqpp::device {

int count_devices();  // 0 without a driver
std::string name_of(Ordinal ordinal);
std::string uuid_of(Ordinal ordinal);  // of the chip, whatever number a process gives it: 32 hex digits
std::size_t memory_of(Ordinal ordinal);  // bytes

class Device {
 public:
  static Device& of(Ordinal ordinal);
  Ordinal ordinal() const { return ordinal_; }
  ContextHandle context() const { return context_; }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  explicit Device(Ordinal ordinal);
  Ordinal ordinal_;
  ContextHandle context_ = nullptr;
};

// Makes a device current for the calling thread while it lives; the caller's own is current again afterwards. Calls made
// meanwhile never spoil a CUDA graph that is captured somewhere in this process.
class Current {
 public:
  explicit Current(const Device& device);
  Current(const Device& device, std::nothrow_t) noexcept;  // for destructors: a driver that is going down says no
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  void begin() noexcept;
  bool pushed_ = false;
  int capture_mode_ = kCaptureRelaxed;  // the thread's own, while this lives
};

}  // namespace zmqpp::device
