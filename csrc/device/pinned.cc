#include "device/pinned.h"

#include "base/error.h"

namespace zmqpp::device {
namespace {

void check_pinned(Result result, std::size_t size) {
  if (result == kSuccess) return;
  throw Error(Code::kPinned, "open",
              "cannot pin " + std::to_string(size) + " bytes of host memory: " + text_of(result) +
                  "; free some, or have less of it pinned (ZMQPP_PINNED_BYTES, ZMQPP_PINNED_POOL_BYTES)");
}

}  // namespace

Pinned::Pinned(Device& device, std::size_t size) : device_(device), size_(size) {
  const Current current(device);
  void* bytes = nullptr;
  check_pinned(driver()->host_allocate(&bytes, size, kHostPortable), size);
  bytes_ = static_cast<std::uint8_t*>(bytes);
}

Pinned::~Pinned() {
  if (!is_usable()) return;
  const Current current(device_, std::nothrow);
  driver()->host_free(bytes_);
}

Registered::Registered(Device& device, void* bytes, std::size_t size) : device_(device), bytes_(bytes) {
  const Current current(device);
  check_pinned(driver()->host_register(bytes, size, kHostPortable), size);
}

Registered::~Registered() {
  if (abandoned_ || !is_usable()) return;
  const Current current(device_, std::nothrow);
  driver()->host_unregister(bytes_);
}

}  // namespace zmqpp::device
