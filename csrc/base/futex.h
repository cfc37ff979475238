// Sleeping on a 32-bit word, also one that two processes share.
//
// Owns: nothing. Blocks? futex_wait, until the word is woken, no longer holds `seen`, or the deadline passed; spurious
// returns are normal, so callers check again. Thread: all safe. Errors: none.
// Source: futex(2); not the PRIVATE variants, because the word may lie in a shared segment.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

#include "base/deadline.h"

namespace zmqpp {

using FutexWord = std::atomic<std::uint32_t>;
static_assert(sizeof(FutexWord) == sizeof(std::uint32_t) && FutexWord::is_always_lock_free);

inline void futex_wait(FutexWord& word, std::uint32_t seen, const Deadline& deadline) noexcept {
  // FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time, which is what steady_clock counts.
  timespec at{};
  if (!deadline.is_never()) {
    const auto since = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.at().time_since_epoch()).count();
    at.tv_sec = since / 1'000'000'000;
    at.tv_nsec = since % 1'000'000'000;
  }
  ::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, seen, deadline.is_never() ? nullptr : &at, nullptr,
            FUTEX_BITSET_MATCH_ANY);
}

inline void futex_wake_all(FutexWord& word) noexcept {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace zmqpp
