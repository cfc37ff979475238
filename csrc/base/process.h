// Which process this is, without a system call: a fork's copies of our objects must leave them alone.
//
// Owns: a process-wide number, set anew in a forked child. Blocks? never. Thread: safe. Errors: none.
#pragma once

#include <pthread.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>

namespace zmqpp {

namespace detail {

inline std::atomic<pid_t> known_pid{0};

inline void remember_pid() noexcept { known_pid.store(::getpid(), std::memory_order_relaxed); }

}  // namespace detail

inline pid_t current_pid() noexcept {
  static const bool watched = [] {
    detail::remember_pid();
    return ::pthread_atfork(nullptr, nullptr, detail::remember_pid) == 0;
  }();
  return watched ? detail::known_pid.load(std::memory_order_relaxed) : ::getpid();
}

}  // namespace zmqpp
