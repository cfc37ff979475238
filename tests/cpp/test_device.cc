// Copies and events over the fake driver, whose streams are late and overtake one another; tests/cuda/fake_driver.cc.
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "device/device.h"
#include "device/pinned.h"
#include "device/stream.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::device;  // NOLINT

namespace {

constexpr std::size_t kSize = 64 << 10;

struct OnDevice {
  explicit OnDevice(Device& device) : device_(device) {
    const Current current(device);
    device::check(driver()->memory_allocate(&address, kSize), "open", "memory");
  }
  ~OnDevice() {
    const Current current(device_, std::nothrow);
    driver()->memory_free(address);
  }
  std::uint8_t* bytes() const { return reinterpret_cast<std::uint8_t*>(address); }
  Address address = 0;

 private:
  Device& device_;
};

void finish(const Event& event) {
  while (!event.is_done()) std::this_thread::yield();
}

}  // namespace

TEST(the_driver_is_found_and_its_devices_told_apart) {
  CHECK(driver() != nullptr && why_none().empty());
  CHECK_EQUAL(count_devices(), 2);
  CHECK(uuid_of(0) != uuid_of(1));
  CHECK_ERROR(Code::kDevice, Device::of(2));
  CHECK_ERROR(Code::kDevice, Device::of(-1));
}

TEST(the_callers_own_device_is_current_again_afterwards) {
  const Current outer(Device::of(1));
  { const Current inner(Device::of(0)); }
  Stream stream(Device::of(1));
  Event outside(Device::of(1));
  CHECK_EQUAL(driver()->event_record(outside.handle(), nullptr), kSuccess);  // on the current device's own stream
}

// What computes and what copies are on streams of their own: only events keep their order.
TEST(a_copy_sees_what_the_callers_stream_wrote_before_and_the_caller_sees_the_copy) {
  for (const Ordinal ordinal : {0, 1}) {
    Device& device = Device::of(ordinal);
    Stream computing(device), copying(device);
    Pinned source(device, kSize), out(device, kSize);
    OnDevice tensor(device);
    Event written(device), copied(device), read(device);
    for (int round = 1; round <= 50; ++round) {
      finish(read);
      std::memset(source.bytes(), round, kSize);
      computing.copy(tensor.bytes(), source.bytes(), kSize);
      computing.record(written);
      copying.after(written);
      copying.copy(out.bytes(), tensor.bytes(), kSize);
      copying.record(copied);
      computing.after(copied);
      computing.record(read);
      finish(copied);
      for (std::size_t i = 0; i < kSize; i += 4096) CHECK_EQUAL(int(out.bytes()[i]), round);
    }
  }
}

TEST(an_event_of_one_device_holds_back_a_stream_of_another) {
  Stream first(Device::of(0)), second(Device::of(1));
  Pinned source(Device::of(0), kSize), out(Device::of(1), kSize);
  OnDevice between(Device::of(0));
  Event written(Device::of(0)), copied(Device::of(1));
  for (int round = 1; round <= 50; ++round) {
    std::memset(source.bytes(), round, kSize);
    first.copy(between.bytes(), source.bytes(), kSize);
    first.record(written);
    second.after(written);
    second.copy(out.bytes(), between.bytes(), kSize);
    second.record(copied);
    finish(copied);
    CHECK_EQUAL(int(out.bytes()[kSize - 1]), round);
  }
}

TEST(memory_that_lies_elsewhere_is_pinned_while_it_is_registered) {
  std::vector<std::uint8_t> memory(kSize);
  {
    const Registered registered(Device::of(0), memory.data(), kSize);
    CHECK_ERROR(Code::kPinned, Registered(Device::of(0), memory.data(), kSize));
  }
  const Registered again(Device::of(0), memory.data(), kSize);
}
