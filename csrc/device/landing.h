// Copies that a device makes by itself, and that are over some time after they were asked for.
//
// Owns: a count. Blocks? never.
// Thread: `part_over` on the driver's own thread, which may call nothing of CUDA; the rest from anywhere.
// Errors: none here: where the device fails, a landing is never over, and Copies::check says why.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "base/event.h"

namespace zmqpp::device {

class Landing {
 public:
  // `wake` is signalled at the end; it must outlive the streams (Copies::drain).
  Landing(zmqpp::Event& wake, int parts) : wake_(wake), left_(parts) {}

  bool is_over() const { return left_.load(std::memory_order_acquire) == 0; }
  void part_over() noexcept {
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) wake_.signal();
  }

 private:
  zmqpp::Event& wake_;
  std::atomic<int> left_;  // streams that are not through yet
};

using LandingPtr = std::shared_ptr<Landing>;  // null: nothing of it was left to a device

}  // namespace zmqpp::device
