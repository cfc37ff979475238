#include "device/device.h"

#include <map>
#include <memory>
#include <mutex>

#include "base/error.h"

namespace zmqpp::device {
namespace {

const Driver& needed() {
  if (const Driver* found = driver()) return *found;
  throw Error(Code::kDevice, "open", why_none());
}

}  // namespace

int count_devices() {
  int count = 0;
  if (const Driver* api = driver()) check(api->device_count(&count), "open", "counting devices");
  return count;
}

// Never taken down: whoever holds a tensor may outlive everything else here.
Device& Device::of(Ordinal ordinal) {
  static std::mutex mutex;
  static auto* devices = new std::map<Ordinal, std::unique_ptr<Device>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Device>& device = (*devices)[ordinal];
  if (device == nullptr) device.reset(new Device(ordinal));
  return *device;
}

Device::Device(Ordinal ordinal) : ordinal_(ordinal) {
  const Driver& api = needed();
  if (ordinal < 0 || ordinal >= count_devices()) {
    throw Error(Code::kDevice, "open",
                "there is no device " + std::to_string(ordinal) + " here: " + std::to_string(count_devices()) + " can be seen");
  }
  check(api.primary_retain(&context_, ordinal), "open", "device " + std::to_string(ordinal));
}

std::string name_of(Ordinal ordinal) {
  char text[256] = "";
  check(needed().device_name(text, sizeof text, ordinal), "open", "the name of a device");
  return text;
}

std::size_t memory_of(Ordinal ordinal) {
  std::size_t bytes = 0;
  check(needed().device_memory(&bytes, ordinal), "open", "the memory of a device");
  return bytes;
}

std::string uuid_of(Ordinal ordinal) {
  Uuid uuid{};
  check(needed().device_uuid(&uuid, ordinal), "open", "the UUID of a device");
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : uuid.bytes) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  return text;
}

Current::Current(const Device& device) {
  check(needed().context_push(device.context()), "open", "device " + std::to_string(device.ordinal()));
  begin();
}

Current::Current(const Device& device, std::nothrow_t) noexcept {
  if (driver()->context_push(device.context()) == kSuccess) begin();
}

void Current::begin() noexcept {
  pushed_ = true;
  driver()->exchange_capture_mode(&capture_mode_);
}

Current::~Current() {
  if (!pushed_) return;
  driver()->exchange_capture_mode(&capture_mode_);
  ContextHandle ours = nullptr;
  driver()->context_pop(&ours);
}

}  // namespace zmqpp::device
