// Copies that a device makes by itself, and that are over some time after they were asked for.
//
// Owns: a count. Blocks? never.
// Thread: `part_over` on the driver's own thread, which may call nothing of CUDA; the rest from anywhere.
// Errors: none here: where the device fails, a landing is never over, and Copies::check says why.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "base/event.h"

namespace zmqpp::device {

// Whom landings wake. They may outlive him: a device that hangs tells late.
class Waker {
 public:
  explicit Waker(zmqpp::Event& event) : event_(&event) {}
  void wake() noexcept {
    const std::lock_guard lock(mutex_);
    if (event_ != nullptr) event_->signal();
  }
  void close() noexcept {
    const std::lock_guard lock(mutex_);
    event_ = nullptr;
  }

 private:
  std::mutex mutex_;
  zmqpp::Event* event_;
};

class Landing {
 public:
  Landing(std::shared_ptr<Waker> waker, int parts) : waker_(std::move(waker)), left_(parts) {}

  bool is_over() const { return left_.load(std::memory_order_acquire) == 0; }
  void part_over() noexcept {
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) waker_->wake();
  }

 private:
  const std::shared_ptr<Waker> waker_;
  std::atomic<int> left_;  // streams that are not through yet
};

using LandingPtr = std::shared_ptr<Landing>;  // null: nothing of it was left to a device

}  // namespace zmqpp::device
