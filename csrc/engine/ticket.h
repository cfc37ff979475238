// One send in flight.
//
// Owns: its state, and the events of a dict with tensors on devices.
// Blocks? wait_… until the state, a failure, or the deadline.
// Thread: the sender thread moves the state forward, anybody waits.
// Errors: wait_… throws the ticket's first error; the deadline alone makes it return false.
// Lifetime: the source of a large dict may be overwritten or freed once the ticket is `settled`, never before, and never when it
//   is `abandoned` too.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "base/deadline.h"
#include "base/error.h"
#include "engine/flight.h"
#include "engine/notice.h"

namespace zmqpp::engine {

class SendTicket {
 public:
  explicit SendTicket(std::shared_ptr<Notice> notice, FlightPtr flight = nullptr)
      : notice_(std::move(notice)), flight_(std::move(flight)) {}

  const FlightPtr& flight() const { return flight_; }  // null: everything is in the host's memory

  // The copies out of the source have been asked for: a stream can be made to wait for them.
  void mark_started() {
    const std::lock_guard lock(mutex_);
    started_ = true;
    changed_.notify_all();
  }

  void mark_copied() { advance(true, false); }
  void mark_sent() { advance(true, true); }

  // `still_read`: a device that has hung or failed may read the source for as long as the process lives.
  void fail(const Error& error, bool still_read = false) {
    const std::lock_guard lock(mutex_);
    abandoned_ |= still_read;
    if (!sent_ && !error_) error_ = error;
    settled_ = true;
    changed_.notify_all();
    notice_->tell();
  }

  bool is_copied() const { return read(copied_); }
  bool is_sent() const { return read(sent_); }
  bool is_settled() const { return read(settled_); }  // copied or failed: the source is read no more, unless it is
  bool is_abandoned() const { return read(abandoned_); }  // never to be freed or overwritten

  // The source is read no more. Of a dict on devices, that is what their events say: before anybody here has heard of it.
  // Throws kDevice.
  bool is_over() const {
    if (is_settled()) return true;
    return flight_ && read(started_) && flight_->is_over();
  }

  bool wait_started(const Deadline& deadline) {
    if (!wait(started_, deadline)) return false;
    const std::lock_guard lock(mutex_);
    if (error_) throw *error_;  // it failed after it had begun
    return true;
  }
  bool wait_copied(const Deadline& deadline) { return wait(copied_, deadline); }
  bool wait_sent(const Deadline& deadline) { return wait(sent_, deadline); }

 private:
  void advance(bool copied, bool sent) {
    const std::lock_guard lock(mutex_);
    started_ |= copied;
    copied_ |= copied;
    sent_ |= sent;
    settled_ = true;
    changed_.notify_all();
    notice_->tell();
  }

  bool read(const bool& flag) const {
    const std::lock_guard lock(mutex_);
    return flag;
  }

  bool wait(const bool& flag, const Deadline& deadline) {
    std::unique_lock lock(mutex_);
    const auto over = [&] { return flag || error_; };
    if (deadline.is_never()) {
      changed_.wait(lock, over);
    } else {
      changed_.wait_until(lock, deadline.at(), over);
    }
    if (flag) return true;
    if (error_) throw *error_;
    return false;
  }

  const std::shared_ptr<Notice> notice_;
  const FlightPtr flight_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false;
  bool copied_ = false;
  bool sent_ = false;
  bool settled_ = false;
  bool abandoned_ = false;
  std::optional<Error> error_;
};

using SendTicketPtr = std::shared_ptr<SendTicket>;

}  // namespace zmqpp::engine
