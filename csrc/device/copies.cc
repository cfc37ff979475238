#include "device/copies.h"

#include <chrono>
#include <thread>
#include <tuple>

namespace zmqpp::device {
namespace {

constexpr std::chrono::microseconds kDrainPoll{50};
constexpr double kLastDrain_s = 30;

// On the driver's thread, which waits with all later work of the stream until this returns.
void on_over(void* data) {
  const std::unique_ptr<LandingPtr> landing(static_cast<LandingPtr*>(data));
  (*landing)->part_over();
}

}  // namespace

Copies::~Copies() {
  if (!hangs_) drain(Deadline::after(kLastDrain_s));
  waker_->close();
}

Copies::Course& Copies::course(Ordinal ordinal) {
  const auto found = courses_.find(ordinal);
  if (found != courses_.end()) return found->second;
  return courses_.emplace(std::piecewise_construct, std::forward_as_tuple(ordinal), std::forward_as_tuple(Device::of(ordinal)))
      .first->second;
}

void Copies::after(const Event& ready) { course(ready.device().ordinal()).stream.after(ready); }

void Copies::copy(Ordinal ordinal, void* to, const void* from, std::size_t size) {
  Course& on = course(ordinal);
  on.stream.copy(to, from, size);
  on.touched = true;
}

LandingPtr Copies::mark() {
  int parts = 0;
  for (const auto& [ordinal, on] : courses_) parts += on.touched ? 1 : 0;
  if (parts == 0) return nullptr;
  auto landing = std::make_shared<Landing>(waker_, parts);
  for (auto& [ordinal, on] : courses_) {
    if (!std::exchange(on.touched, false)) continue;
    auto data = std::make_unique<LandingPtr>(landing);
    on.stream.call(on_over, data.get());
    data.release();  // on_over has it now
  }
  return landing;
}

void Copies::record(Event& event) { course(event.device().ordinal()).stream.record(event); }

void Copies::check() const {
  for (const auto& [ordinal, on] : courses_) on.stream.is_done();
}

bool Copies::drain(const Deadline& deadline) noexcept {
  try {
    for (auto& [ordinal, on] : courses_) {
      while (!on.stream.is_done()) {
        if (deadline.expired()) return !(hangs_ = true);
        std::this_thread::sleep_for(kDrainPoll);
      }
    }
  } catch (const Error&) {
    return !(hangs_ = true);
  }
  return true;
}

}  // namespace zmqpp::device
