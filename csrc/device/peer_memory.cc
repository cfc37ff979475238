#include "device/peer_memory.h"

#include <string>

#include "base/error.h"

namespace zmqpp::device {

Exported::Exported(Device& device, std::size_t size) : device_(device), size_(size) {
  const Current current(device);
  check(driver()->memory_allocate(&address_, size), "open", std::to_string(size) + " bytes of device memory to share");
  const Result result = driver()->ipc_export_memory(&handle_, address_);
  if (result == kSuccess) return;
  driver()->memory_free(address_);
  check(result, "open", "sharing device memory with another process");
}

Exported::~Exported() {
  if (address_ == 0 || !is_usable()) return;
  const Current current(device_, std::nothrow);
  driver()->memory_free(address_);
}

Opened::Opened(Device& device, const IpcMemory& handle, std::size_t size) : device_(device), size_(size) {
  const Current current(device);
  check(driver()->ipc_open_memory(&address_, handle, kIpcLazyPeerAccess), "open", "opening the peer's device memory");
  // Announced sizes are no better than the peer: beyond the end lies a fault that would take the whole context along.
  Address base = 0;
  std::size_t found = 0;
  if (driver()->memory_range(&base, &found, address_) != kSuccess) return;  // a driver that cannot say
  if (base + found - address_ >= size) return;
  driver()->ipc_close_memory(address_);
  throw Error(Code::kDevice, "open", "the peer's device memory is smaller than the " + std::to_string(size) + " bytes announced");
}

Opened::~Opened() { close(); }

bool Opened::close() noexcept {
  if (address_ == 0) return true;
  if (!is_usable()) return false;
  const Current current(device_, std::nothrow);
  if (driver()->ipc_close_memory(address_) != kSuccess) return false;
  address_ = 0;
  return true;
}

}  // namespace zmqpp::device
