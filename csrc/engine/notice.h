// Tells whoever waits in a poll set, an asyncio loop, that some ticket of a link changed.
//
// Owns: the event. Blocks? never. Thread: all safe; tickets may outlive the link, and keep this. Errors: kResource.
#pragma once

#include <atomic>

#include "base/event.h"

namespace zmqpp::engine {

class Notice {
 public:
  int fd() const { return event_.fd(); }
  bool armed() const { return armed_.load(); }
  void drain() noexcept { event_.drain(); }
  void close() noexcept { event_.close(); }

  // Arming signals once: what happened before is looked at.
  void arm(bool on) noexcept {
    armed_.store(on);
    if (on) event_.signal();
  }

  void tell() noexcept {
    if (armed_.load(std::memory_order_relaxed)) event_.signal();
  }

 private:
  std::atomic<bool> armed_{false};
  Event event_;
};

}  // namespace zmqpp::engine
