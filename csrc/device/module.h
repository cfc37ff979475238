// A program on a device, made from an image that nvcc has compiled, and calls of its functions.
//
// Owns: Module the program, in one device's context. Blocks? loading and unloading may take milliseconds, and wait for the
//   device; launch never. Thread: all safe. Errors: kDevice: the driver cannot use the image (it is older, or the device is),
//   or there is no such function. The destructor swallows.
#pragma once

#include "device/device.h"

namespace zmqpp::device {

class Module {
 public:
  Module(Device& device, const void* image);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  FunctionHandle function(const char* name) const;  // valid as long as the module
  Device& device() const { return device_; }

 private:
  Device& device_;
  ModuleHandle handle_ = nullptr;
};

// `arguments`: the address of each; they are read before it returns. `stream`: of this device.
void launch(Device& device, FunctionHandle function, StreamHandle stream, unsigned blocks, unsigned threads, void** arguments);

}  // namespace zmqpp::device
