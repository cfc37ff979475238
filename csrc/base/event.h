// A wake-up that can sit in a poll set: an eventfd.
//
// Owns: one file descriptor, until close(). Blocks? never.
// Thread: signal() and close() from any thread, the rest from the one that polls, which must be gone before close().
// Errors: the constructor throws kResource when the process is out of descriptors.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "base/error.h"

namespace zmqpp {

class Event {
 public:
  Event() : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (fd_ < 0) throw Error(Code::kResource, "open", std::string("no eventfd: ") + std::strerror(errno));
  }
  ~Event() { close(); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  int fd() const { return fd_; }

  void signal() noexcept {
    const std::uint64_t one = 1;
    const std::lock_guard lock(mutex_);
    if (fd_ < 0) return;
    // EAGAIN means the counter is full, so the poller will wake anyway.
    [[maybe_unused]] const auto written = ::write(fd_, &one, sizeof one);
  }

  bool is_signalled() const noexcept {
    pollfd item{fd_, POLLIN, 0};
    return ::poll(&item, 1, 0) > 0;
  }

  void drain() noexcept {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto taken = ::read(fd_, &count, sizeof count);
  }

  // Nobody polls any more; signals from now on go nowhere.
  void close() noexcept {
    const std::lock_guard lock(mutex_);
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  std::mutex mutex_;  // a late signal must not write to whatever got the closed descriptor's number
  int fd_;
};

}  // namespace zmqpp
