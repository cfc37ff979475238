#include "engine/shared_lane.h"

#include <algorithm>
#include <utility>

#include "base/align.h"
#include "base/clock.h"

namespace zmqpp::engine {
namespace {

// With everything taken and nothing released for this long, the receiver keeps what it got: it will not fit whole.
constexpr double kPatience_s = 0.005;

std::uint64_t body_size(const DictMark& mark) { return align_up(mark.manifest_size) + mark.total; }

}  // namespace

SharedLane::Current::Current(Outgoing from)
    : item(std::move(from)),
      body(body_spans(item)),
      mark{.total = item.total, .tag = item.tag, .epoch = item.epoch, .manifest_size = manifest_size(item)},
      reader(body, 1),
      left(body_size(mark)) {}

SharedLane::SharedLane(std::uint64_t session, const Options& options, Budget& budget, Stats& stats)
    : options_(options), budget_(budget), stats_(stats) {
  writer_.emplace(session, options, stats);
}

bool SharedLane::try_send(const std::vector<Span>& body, const DictMark& mark) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !writer_ || current_ || cancel_ || !queue_.empty()) return false;
  const std::uint64_t size = body_size(mark);
  PayloadReader reader(body, 1);
  if (!writer_->fits_whole(size) || !writer_->write(wire::EntryKind::kWhole, mark, reader, size)) return false;
  add(stats_.dicts_sent);
  nudge_ |= writer_->take_nudge_request();
  return true;
}

void SharedLane::push(Outgoing item) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(item));
}

bool SharedLane::pump() {
  const std::lock_guard lock(mutex_);
  if (cancel_ && !writer_->write_cancel(*cancel_)) return false;
  cancel_.reset();
  while (true) {
    if (!current_) {
      if (queue_.empty()) return true;
      current_.emplace(std::move(queue_.front()));
      queue_.pop_front();
    }
    const bool written = write_current();
    nudge_ |= writer_->take_nudge_request() || !written;
    if (!written) return false;
    finish_current();
  }
}

bool SharedLane::write_current() {
  Current& now = *current_;
  if (!now.started && writer_->fits_whole(now.left)) {
    if (writer_->write(wire::EntryKind::kWhole, now.mark, now.reader, now.left)) return true;
    if (!is_starved()) return false;
  }
  return write_pieces();
}

bool SharedLane::is_starved() {
  if (!writer_->all_taken()) {
    patience_ = Deadline::never();
    return false;
  }
  if (patience_.is_never()) patience_ = Deadline::after(kPatience_s);
  return patience_.expired();
}

bool SharedLane::write_pieces() {
  Current& now = *current_;
  while (now.left > 0) {
    std::uint64_t step = std::min(now.left, writer_->room_for_piece());
    // A first piece must leave something for a second.
    if (!now.started && step == now.left) step = now.left / 2 / kAlign * kAlign;
    if (step == 0 && (now.started || now.left > kAlign)) return false;
    const auto kind = now.started ? wire::EntryKind::kPiece : wire::EntryKind::kFirst;
    if (!writer_->write(kind, now.mark, now.reader, step)) return false;
    now.started = true;
    now.left -= step;
  }
  return true;
}

void SharedLane::finish_current() {
  Outgoing& item = current_->item;
  add(stats_.dicts_sent);
  if (item.in_flight) stats_.send_ns.add(now_ns() - item.accepted_ns);
  leave_flight(item, stats_);
  item.ticket->mark_sent();
  budget_.release(item.held_bytes, 1);
  current_.reset();
  patience_ = Deadline::never();
}

bool SharedLane::idle() const {
  const std::lock_guard lock(mutex_);
  return !current_ && !cancel_ && queue_.empty();
}

Deadline SharedLane::soonest() const {
  const std::lock_guard lock(mutex_);
  // Once it has passed it says nothing about when to look again: only a release does.
  Deadline soonest = patience_.expired() ? Deadline::never() : patience_;
  if (current_) soonest = soonest.sooner(current_->item.deadline);
  for (const Outgoing& item : queue_) soonest = soonest.sooner(item.deadline);
  return soonest;
}

bool SharedLane::expire() {
  const std::lock_guard lock(mutex_);
  std::vector<Outgoing> late_items;
  if (current_ && current_->item.deadline.expired()) {
    if (current_->started) {
      cancel_ = current_->mark;
      add(stats_.cancelled);
    }
    late_items.push_back(std::move(current_->item));
    current_.reset();
  }
  std::deque<Outgoing> keep;
  for (Outgoing& item : queue_) {
    if (item.deadline.expired()) {
      late_items.push_back(std::move(item));
    } else {
      keep.push_back(std::move(item));
    }
  }
  queue_ = std::move(keep);
  if (late_items.empty()) return false;
  const Error error(Code::kPoolTimeout, "send",
                    "no room for a dict until its deadline: " + writer_->held_text(options_.next) +
                        "; the dict was not delivered, the link goes on");
  for (Outgoing& item : late_items) {
    leave_flight(item, stats_);
    budget_.release(item.held_bytes, 1);
    item.ticket->fail(error);
  }
  return true;
}

bool SharedLane::owes_nudge() {
  const std::lock_guard lock(mutex_);
  return nudge_;
}

bool SharedLane::take_nudge() {
  const std::lock_guard lock(mutex_);
  return std::exchange(nudge_, false);
}

std::string SharedLane::held_text() {
  const std::lock_guard lock(mutex_);
  return writer_ ? writer_->held_text(options_.next) : "";
}

void SharedLane::wake() {
  const std::lock_guard lock(mutex_);
  if (writer_) writer_->wake_room();
}

void SharedLane::close(const Error& reason) noexcept {
  const std::lock_guard lock(mutex_);
  if (current_) queue_.push_front(std::move(current_->item));
  current_.reset();
  for (Outgoing& item : queue_) {
    leave_flight(item, stats_);
    budget_.release(item.held_bytes, 1);
    item.ticket->fail(reason);
  }
  queue_.clear();
  writer_.reset();
}

}  // namespace zmqpp::engine
