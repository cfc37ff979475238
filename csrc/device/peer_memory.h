// Device memory of one process that another one copies from: made and exported here, opened there.
//
// Owns: Exported the memory, Opened the mapping. Blocks? all four constructors and destructors, which the driver takes its time
//   for: when a link opens and closes. Thread: any. Errors: kDevice, with the driver's reason: no such device there, no access
//   between the two, the same process, a platform without CUDA IPC.
// Lifetime: Exported must outlive every Opened of it: to free it earlier is undefined. When its process is killed the driver
//   keeps the memory until it has been closed everywhere.
// Source: CUDA driver API, cuIpcGetMemHandle, cuIpcOpenMemHandle.
#pragma once

#include <cstddef>

#include "device/device.h"

namespace zmqpp::device {

class Exported {
 public:
  Exported(Device& device, std::size_t size);
  ~Exported();
  Exported(const Exported&) = delete;
  Exported& operator=(const Exported&) = delete;

  Address address() const { return address_; }
  std::size_t size() const { return size_; }
  const IpcMemory& handle() const { return handle_; }
  void abandon() { address_ = 0; }  // a device that no longer answers may still use it

 private:
  Device& device_;
  Address address_ = 0;
  const std::size_t size_;
  IpcMemory handle_{};
};

class Opened {
 public:
  Opened(Device& device, const IpcMemory& handle, std::size_t size);  // kDevice too if it is smaller than `size`
  ~Opened();
  bool close() noexcept;  // false: the driver does not, so it must be taken for open. Nothing copies from it any more
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  Address address() const { return address_; }
  std::size_t size() const { return size_; }

 private:
  Device& device_;
  Address address_ = 0;
  const std::size_t size_;
};

}  // namespace zmqpp::device
