#include "engine/inbox.h"

#include <utility>

#include "engine/frame.h"

namespace zmqpp::engine {

bool Inbox::has_room() const {
  const std::lock_guard lock(mutex_);
  return held_bytes_ < limit_bytes_ && controls_.size() < max_controls_;
}

void Inbox::put(Control control) {
  const std::lock_guard lock(mutex_);
  if (control.epoch < epoch_) return add(stats_.stale);
  held_bytes_ += body_size(control.frame);
  controls_.push_back(std::move(control));
  changed_.notify_all();
}

void Inbox::put(Dict dict) {
  const std::lock_guard lock(mutex_);
  if (dict.epoch < epoch_) return add(stats_.stale);
  held_bytes_ += dict.held_bytes();
  if (waiting_.empty()) {
    dicts_.push_back(std::move(dict));
  } else {
    waiting_.front()->dict = std::move(dict);
    waiting_.pop_front();
  }
  changed_.notify_all();
}

void Inbox::fail(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = error;
  changed_.notify_all();
}

std::uint32_t Inbox::epoch() const {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

std::optional<Control> Inbox::take_control(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  wait_for(lock, deadline, [&] { return !controls_.empty() || error_; });
  if (!controls_.empty()) {
    Control control = std::move(controls_.front());
    controls_.pop_front();
    gave(body_size(control.frame));
    return control;
  }
  if (error_) throw *error_;
  return std::nullopt;
}

RecvTicketPtr Inbox::post() {
  auto ticket = std::make_shared<RecvTicket>();
  const std::lock_guard lock(mutex_);
  if (dicts_.empty()) {
    waiting_.push_back(ticket);
  } else {
    ticket->dict = std::move(dicts_.front());
    dicts_.pop_front();
  }
  return ticket;
}

bool Inbox::is_ready(const RecvTicketPtr& ticket) const {
  const std::lock_guard lock(mutex_);
  return ticket->dict || ticket->taken || error_;
}

std::optional<Dict> Inbox::wait(const RecvTicketPtr& ticket, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  drop_stale(ticket);
  wait_for(lock, deadline, [&] { return ticket->dict || error_; });
  if (ticket->dict) {
    std::optional<Dict> dict = std::exchange(ticket->dict, std::nullopt);
    ticket->taken = true;
    gave(dict->held_bytes());
    return dict;
  }
  if (error_) throw *error_;
  return std::nullopt;
}

// A dict that reached its ticket before the epoch changed; the ticket keeps its place in front of later ones.
void Inbox::drop_stale(const RecvTicketPtr& ticket) {
  if (!ticket->dict || ticket->dict->epoch >= epoch_) return;
  gave(ticket->dict->held_bytes());
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
    changed_.notify_all();
  }
  ticket->dict.reset();
}

void Inbox::set_epoch(std::uint32_t epoch) {
  const std::lock_guard lock(mutex_);
  epoch_ = epoch;
  const auto old = [&](const auto& message) { return message.epoch < epoch; };
  std::size_t freed = 0, dropped = 0;
  for (const Control& control : controls_) freed += old(control) ? body_size(control.frame) : 0;
  for (const Dict& dict : dicts_) freed += old(dict) ? dict.held_bytes() : 0;
  dropped += std::erase_if(controls_, old);
  dropped += std::erase_if(dicts_, old);
  add(stats_.stale, dropped);
  gave(freed);
}

std::optional<Error> Inbox::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

template <typename Ready>
void Inbox::wait_for(std::unique_lock<std::mutex>& lock, const Deadline& deadline, Ready ready) {
  if (deadline.is_never()) {
    changed_.wait(lock, ready);
  } else {
    changed_.wait_until(lock, deadline.at(), ready);
  }
}

void Inbox::gave(std::size_t bytes) {
  held_bytes_ -= bytes;
  room_.signal();
}

}  // namespace zmqpp::engine
