// Polling for a moment before sleeping: a wake-up by the kernel costs tens of microseconds, a poll that hits none.
//
// The budget adapts: it stays at its maximum while waits end within it, and shrinks while they do not, so that a stage
// that waits milliseconds for its next step does not burn them. The processor is offered to others between polls,
// because stages may outnumber cores.
//
// Owns: the budget. Blocks? for the budget at most. Thread: all safe; several waiters share one budget. Errors: none.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/clock.h"

namespace zmqpp {

inline void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Spin {
 public:
  explicit Spin(std::uint64_t most_us) : most_ns_(most_us * 1000), budget_ns_(most_ns_) {}

  // True when `ready()` became true within the budget. `busy` polls come first, the rest yield in between.
  template <typename Ready>
  bool poll(Ready ready, int busy = kBusyPolls) {
    const std::uint64_t budget = budget_ns_.load(std::memory_order_relaxed);
    if (budget == 0) return ready();
    for (int i = 0; i < busy; ++i) {
      if (ready()) return true;
      cpu_relax();
    }
    const std::uint64_t end = now_ns() + budget;
    do {
      if (ready()) return true;
      ::sched_yield();
    } while (now_ns() < end);
    return ready();
  }

  // How long the whole wait took, sleep included: would polling have caught it?
  void learn(std::uint64_t waited_ns) noexcept {
    const std::uint64_t budget = budget_ns_.load(std::memory_order_relaxed);
    const std::uint64_t next = waited_ns <= most_ns_ ? most_ns_ : std::max(budget / 2, most_ns_ / kLeast);
    if (next != budget) budget_ns_.store(next, std::memory_order_relaxed);
  }

 private:
  static constexpr int kBusyPolls = 40;        // about a microsecond
  static constexpr std::uint64_t kLeast = 16;  // of the maximum is always polled, or short waits were never noticed
  const std::uint64_t most_ns_;
  std::atomic<std::uint64_t> budget_ns_;
};

}  // namespace zmqpp
