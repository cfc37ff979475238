#include "device/stream.h"

#include <utility>

namespace zmqpp::device {
namespace {

Address address_of(const void* bytes) { return reinterpret_cast<Address>(bytes); }

}  // namespace

Event::Event(Device& device) : device_(&device) {
  const Current current(device);
  check(driver()->event_create(&handle_, kEventNoTiming), "open", "an event");
}

Event::Event(Event&& other) noexcept : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}

Event::~Event() {
  if (handle_ == nullptr || !is_usable()) return;
  const Current current(*device_, std::nothrow);
  driver()->event_destroy(handle_);
}

void Event::record(StreamHandle stream) {
  const Current current(*device_);
  check(driver()->event_record(handle_, stream), "send", "recording an event");
}

bool Event::is_done() const {
  const Current current(*device_);
  const Result result = driver()->event_query(handle_);
  if (result != kNotReady) check(result, "send", "work before a copy, or a copy, failed on the device");
  return result == kSuccess;
}

Stream::Stream(Device& device) : device_(device) {
  const Current current(device);
  int least = 0, greatest = 0;
  check(driver()->stream_priorities(&least, &greatest), "open", "a copy stream");
  check(driver()->stream_create(&handle_, kStreamNonBlocking, greatest), "open", "a copy stream");
}

Stream::~Stream() {
  if (handle_ == nullptr || !is_usable()) return;
  const Current current(device_, std::nothrow);
  driver()->stream_destroy(handle_);
}

void Stream::after(const Event& event) { hold_back(device_, handle_, event); }

void Stream::copy(void* to, const void* from, std::size_t size) {
  const Current current(device_);
  check(driver()->copy(address_of(to), address_of(from), size, handle_), "send", "a copy of " + std::to_string(size) + " bytes");
}

void Stream::call(HostFunction function, void* data) {
  const Current current(device_);
  check(driver()->launch_host(handle_, function, data), "send", "a call after a copy");
}

bool Stream::is_done() const {
  const Current current(device_);
  const Result result = driver()->stream_query(handle_);
  if (result != kNotReady) check(result, "send", "a copy, or work before it, failed on the device");
  return result == kSuccess;
}

void hold_back(Device& device, StreamHandle stream, const Event& event) {
  const Current current(device);
  check(driver()->stream_wait_event(stream, event.handle(), 0), "send", "waiting for an event");
}

bool is_capturing(Device& device, StreamHandle stream) {
  const Current current(device);
  int status = 0;
  check(driver()->stream_capturing(stream, &status), "send", "a look at the caller's stream");
  return status != 0;
}

}  // namespace zmqpp::device
