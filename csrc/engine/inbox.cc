#include "engine/inbox.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "engine/frame.h"

namespace zmqpp::engine {

bool Inbox::has_room() {
  const std::lock_guard lock(mutex_);
  full_ = (held_bytes_ >= limit_bytes_ && !is_awaited()) || controls_.size() >= kMaxControls;
  return !full_;
}

bool Inbox::has_control_room() {
  const std::lock_guard lock(mutex_);
  const bool room = control_bytes_ < limit_bytes_ && controls_.size() < kMaxControls;
  full_ |= !room;
  return room;
}

// ---- receiver thread --------------------------------------------------------------------------------------------

void Inbox::attach(std::shared_ptr<RingReader> ring, const std::string& who) {
  const std::lock_guard lock(mutex_);
  ring_ = std::move(ring);
  ring_writer_ = who;
  if (notice_->armed()) ring_->want_nudge(true);
  tell();
}

void Inbox::detach() {
  const std::lock_guard lock(mutex_);
  tell();
  ring_.reset();
}

void Inbox::read_ring() {
  const std::lock_guard lock(mutex_);
  drain_ring();
  while (waiting_.empty() && held_bytes_ < limit_bytes_ && ring_ && ring_->next_is_piece()) {
    std::optional<Dict> dict = next_from_ring();
    if (!dict) return;
    dict->counted = dict->held_bytes();
    held_bytes_ += dict->counted;
    dicts_.push_back(std::move(*dict));
  }
}

void Inbox::put(Control control) {
  const std::lock_guard lock(mutex_);
  if (ages(control.route) && control.epoch < epoch_) return add(stats_.stale);
  newest_ = std::max(newest_, control.epoch);
  held_bytes_ += body_size(control.frame);
  control_bytes_ += body_size(control.frame);
  controls_.push_back(std::move(control));
  tell();
}

void Inbox::put(Dict dict) {
  const std::lock_guard lock(mutex_);
  if (dict.epoch < epoch_) return add(stats_.stale);
  dict.counted = dict.held_bytes();
  held_bytes_ += dict.counted;
  if (waiting_.empty()) {
    dicts_.push_back(std::move(dict));
  } else {
    waiting_.front()->dict = std::move(dict);
    waiting_.pop_front();
  }
  tell();
}

void Inbox::fail(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = error;
  tell();
}

std::uint32_t Inbox::epoch() const {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

// ---- any thread -------------------------------------------------------------------------------------------------

std::optional<Control> Inbox::take_control(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  while (true) {
    const std::uint32_t seen = changes();
    if (controls_.empty()) read_controls(lock);
    if (!controls_.empty()) break;
    if (error_) throw *error_;
    if (deadline.expired()) return std::nullopt;
    sleep(lock, {.control = source_ != nullptr}, seen, deadline);
  }
  Control control = std::move(controls_.front());
  controls_.pop_front();
  control_bytes_ -= body_size(control.frame);
  gave(body_size(control.frame));
  return control;
}

RecvTicketPtr Inbox::post() {
  auto ticket = std::make_shared<RecvTicket>();
  const std::lock_guard lock(mutex_);
  if (dicts_.empty()) {
    waiting_.push_back(ticket);
    if (notice_->armed()) make_room();
  } else {
    ticket->dict = std::move(dicts_.front());
    dicts_.pop_front();
  }
  return ticket;
}

bool Inbox::is_ready(const RecvTicketPtr& ticket) {
  const std::lock_guard lock(mutex_);
  if (!ticket->dict && !ticket->taken) drain_ring();
  return ticket->dict || ticket->taken || error_;
}

std::optional<Dict> Inbox::try_receive() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !waiting_.empty()) return std::nullopt;
  if (dicts_.empty()) return next_from_ring();
  std::optional<Dict> dict = std::move(dicts_.front());
  dicts_.pop_front();
  return give(std::move(dict));
}

std::optional<Dict> Inbox::wait(const RecvTicketPtr& ticket, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  drop_stale(ticket);
  while (true) {
    const std::uint32_t seen = changes();
    read_controls(lock);
    if (!ticket->dict) drain_ring();
    if (ticket->dict) break;
    if (error_) throw *error_;
    if (newest_ > epoch_) throw superseded();
    if (deadline.expired()) return std::nullopt;
    ticket->awaited = true;
    make_room();
    sleep(lock, {.dict = true, .control = source_ != nullptr}, seen, deadline);
    ticket->awaited = false;
  }
  ticket->taken = true;
  return give(std::exchange(ticket->dict, std::nullopt));
}

std::optional<Dict> Inbox::give(std::optional<Dict> dict) {
  if (dict->counted > 0) gave(dict->counted);
  return dict;
}

// The dict that is waited for was given up where it came from: only what follows the epoch's first message counts.
Error Inbox::superseded() const {
  return Error(Code::kPeerLost, "receive",
               "epoch " + std::to_string(newest_) + " began while a dict of epoch " + std::to_string(epoch_) +
                   " was waited for");
}

// A dict that reached its ticket before the epoch changed; the ticket keeps its place in front of later ones.
void Inbox::drop_stale(const RecvTicketPtr& ticket) {
  if (!ticket->dict || ticket->dict->epoch >= epoch_) return;
  gave(ticket->dict->counted);
  add(stats_.stale);
  ticket->dict.reset();
  if (dicts_.empty()) {
    waiting_.push_front(ticket);
  } else {
    ticket->dict = std::move(dicts_.front());
    dicts_.pop_front();
  }
}

void Inbox::cancel(const RecvTicketPtr& ticket) {
  const std::lock_guard lock(mutex_);
  std::erase(waiting_, ticket);
  if (!ticket->dict) return;
  if (waiting_.empty()) {
    dicts_.push_front(std::move(*ticket->dict));
  } else {
    waiting_.front()->dict = std::move(*ticket->dict);
    waiting_.pop_front();
    tell();
  }
  ticket->dict.reset();
}

void Inbox::set_epoch(std::uint32_t epoch) {
  const std::lock_guard lock(mutex_);
  epoch_ = epoch;
  const auto old_control = [&](const Control& control) { return ages(control.route) && control.epoch < epoch; };
  const auto old_dict = [&](const Dict& dict) { return dict.epoch < epoch; };
  std::size_t freed = 0, dropped = 0;
  for (const Control& control : controls_) freed += old_control(control) ? body_size(control.frame) : 0;
  control_bytes_ -= freed;
  for (const Dict& dict : dicts_) freed += old_dict(dict) ? dict.counted : 0;
  dropped += std::erase_if(controls_, old_control);
  dropped += std::erase_if(dicts_, old_dict);
  newest_ = epoch;
  for (const Control& control : controls_) newest_ = std::max(newest_, control.epoch);
  add(stats_.stale, dropped);
  gave(freed);
}

std::optional<Error> Inbox::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void Inbox::arm(bool on) {
  notice_->arm(on);
  const std::lock_guard lock(mutex_);
  if (ring_) ring_->want_nudge(on);
  if (on) make_room();
}

// ---- with the mutex held ----------------------------------------------------------------------------------------

void Inbox::drain_ring() {
  bool filled = false;
  while (!waiting_.empty()) {
    std::optional<Dict> dict = next_from_ring();
    if (!dict) break;
    waiting_.front()->dict = std::move(dict);
    waiting_.pop_front();
    filled = true;
  }
  if (filled && ring_waiters_ > 1) ring_->stir();  // it may have been for one of the others
  if (filled) notice_->tell();
}

// A ring that is broken ends the link: the receiver thread sees the error, and hangs up.
std::optional<Dict> Inbox::next_from_ring() {
  if (!ring_) return std::nullopt;
  try {
    while (std::optional<Dict> dict = ring_->take()) {
      if (dict->epoch >= epoch_) return dict;
      add(stats_.stale);
    }
  } catch (const Error& error) {
    if (!error_) {
      error_ = Error(error.code(), error.op(), "from " + ring_writer_ + ": " + error.detail());
      room_.signal();
      tell();
    }
  }
  return std::nullopt;
}

// Who waits for anything passes control messages on, too.
void Inbox::read_controls(std::unique_lock<std::mutex>& lock) {
  bool more = true;
  while (more && ring_ && source_ != nullptr && ring_->has_control()) {
    lock.unlock();  // the source locks it behind its own
    more = source_->read_controls();
    lock.lock();
  }
}

void Inbox::sleep(std::unique_lock<std::mutex>& lock, RingReader::Wants wants, std::uint32_t seen,
                  const Deadline& deadline) {
  const std::uint64_t start = now_ns();
  if (ring_) {
    sleep_on_ring(lock, wants, seen, deadline);
  } else {
    lock.unlock();
    const auto changed = [&] { return static_cast<std::uint32_t>(changes_.load()) != seen; };
    const auto look = [&] {
      if (!changed() && source_ != nullptr) source_->read_now();
      return changed();
    };
    const bool came = spin_.poll(look, 1);
    if (!came && source_ != nullptr) source_->read_on();
    lock.lock();
    if (!came) {
      if (deadline.is_never()) {
        changed_.wait(lock, changed);
      } else {
        changed_.wait_until(lock, deadline.at(), changed);
      }
    }
    spin_.learn(now_ns() - start);
  }
  add(stats_.peer_wait_ns, now_ns() - start);
}

// Counted as a waiter before the lock goes, so that whoever puts something meanwhile rings the bell.
void Inbox::sleep_on_ring(std::unique_lock<std::mutex>& lock, RingReader::Wants wants, std::uint32_t seen,
                          const Deadline& deadline) {
  const std::uint64_t start = now_ns();
  const std::shared_ptr<RingReader> ring = ring_;
  ++ring_waiters_;
  lock.unlock();
  if (!ring->spin(seen, wants)) ring->sleep(seen, wants, deadline);
  ring->waited(now_ns() - start);
  lock.lock();
  --ring_waiters_;
}

void Inbox::tell() {
  changes_.fetch_add(1);
  changed_.notify_all();
  if (ring_ && ring_waiters_ > 0) ring_->stir();
  notice_->tell();
}

void Inbox::gave(std::size_t bytes) {
  held_bytes_ -= bytes;
  make_room();
}

void Inbox::make_room() {
  if (std::exchange(full_, false)) room_.signal();
}

// Who waits for a dict takes nothing else: what came in front of it must not keep it out. Only until it is here.
bool Inbox::is_awaited() const {
  const auto awaited = [](const RecvTicketPtr& ticket) { return ticket->awaited; };
  return !waiting_.empty() && (notice_->armed() || std::any_of(waiting_.begin(), waiting_.end(), awaited));
}

}  // namespace zmqpp::engine
