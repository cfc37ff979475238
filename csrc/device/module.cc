#include "device/module.h"

#include <string>

namespace zmqpp::device {

Module::Module(Device& device, const void* image) : device_(device) {
  const Current current(device);
  check(driver()->module_load(&handle_, image), "load", "kernels on device " + std::to_string(device.ordinal()));
}

Module::~Module() {
  const Current current(device_, std::nothrow);
  driver()->module_unload(handle_);
}

FunctionHandle Module::function(const char* name) const {
  const Current current(device_);
  FunctionHandle found = nullptr;
  check(driver()->module_function(&found, handle_, name), "load", std::string("kernel ") + name);
  return found;
}

void launch(Device& device, FunctionHandle function, StreamHandle stream, unsigned blocks, unsigned threads, void** arguments) {
  const Current current(device);
  check(driver()->launch_kernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, nullptr), "launch", "a kernel");
}

}  // namespace zmqpp::device
