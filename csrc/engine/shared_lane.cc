#include "engine/shared_lane.h"

#include <algorithm>
#include <utility>

#include "base/align.h"
#include "base/clock.h"

namespace zmqpp::engine {
namespace {

// With everything taken and nothing released for this long, the receiver keeps what it got: it will not fit whole.
constexpr double kPatience_s = 0.005;
constexpr double kDrain_s = 30;  // for copies under way, and the computing they wait for

std::uint64_t body_size(const DictMark& mark) { return align_up(mark.manifest_size) + mark.total; }

}  // namespace

SharedLane::Current::Current(Outgoing from)
    : item(std::move(from)),
      body(body_spans(item)),
      mark{.total = item.total, .tag = item.tag, .epoch = item.epoch, .manifest_size = manifest_size(item)},
      reader(body, 1),
      left(body_size(mark)) {}

SharedLane::SharedLane(std::uint64_t session, const Options& options, Budget& budget, Stats& stats, Event& wake)
    : options_(options), budget_(budget), stats_(stats), copies_(wake) {
  writer_ = std::make_unique<SegmentWriter>(session, options, stats);
  control_writer_ = writer_.get();
  if (options.device >= 0) writer_->pin(device::Device::of(options.device));
}

bool SharedLane::try_send(const std::vector<Span>& body, const DictMark& mark) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !writer_ || current_ || cancel_ || !queue_.empty() || !begun_.empty()) return false;
  const std::uint64_t size = body_size(mark);
  PayloadReader reader(body, 1);
  if (!writer_->fits_whole(size) || !writer_->write(wire::EntryKind::kWhole, mark, reader, size)) return false;
  add(stats_.dicts_sent);
  nudge_ |= writer_->take_nudge_request();
  return true;
}

SegmentWriter::Written SharedLane::try_control(const ControlMark& mark, std::uint64_t after, const std::uint8_t* body,
                                               std::size_t size) {
  const std::lock_guard lock(control_mutex_);
  return control_writer_ ? control_writer_->write_control(mark, after, body, size) : SegmentWriter::Written::kNoRoom;
}

void SharedLane::end_controls() noexcept {
  const std::lock_guard lock(control_mutex_);
  control_writer_ = nullptr;
}

void SharedLane::pin(device::Device& device) {
  const std::lock_guard lock(mutex_);
  if (writer_) writer_->pin(device);
}

void SharedLane::push(Outgoing item) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(item));
}

SharedLane::Progress SharedLane::pump() {
  const std::lock_guard lock(mutex_);
  return pump_locked();
}

void SharedLane::try_pump() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock && writer_) pump_locked();
}

SharedLane::Progress SharedLane::pump_locked() {
  while (true) {
    publish_landed();
    if (begun_.empty()) fail_late();
    if (cancel_) {
      if (!begun_.empty()) return Progress::kLanding;
      if (!writer_->write_cancel(*cancel_)) return Progress::kNoRoom;
      cancel_.reset();
    }
    if (!current_) {
      if (queue_.empty()) {
        if (writer_->holds_device_memory()) writer_->reclaim();
        return begun_.empty() ? Progress::kIdle : Progress::kLanding;
      }
      current_.emplace(std::move(queue_.front()));
      queue_.pop_front();
    }
    const bool written = write_current();
    nudge_ |= !written;  // pieces: the receiver shall make room
    if (!written) {
      publish_landed();
      return begun_.empty() ? Progress::kNoRoom : Progress::kLanding;
    }
    end_current();
  }
}

bool SharedLane::write_current() {
  Current& now = *current_;
  if (now.item.flight && !now.started) {
    begin_device_dict();
    if (!is_device_decided()) return false;
  }
  if (!now.started && writer_->fits_whole(now.left)) {
    if (write_whole()) return true;
    if (!is_starved()) return false;
  }
  return write_pieces();
}

void SharedLane::begin_device_dict() {
  const Flight& flight = *current_->item.flight;
  device::Device& device = device::Device::of(flight.devices().front());
  writer_->pin(device);  // where the link did not know of devices when it opened
  if (!may_use_devices(options_.lane)) return;
  device_state_ = writer_->offer_device(device);
  if (device_state_ != wire::DeviceState::kRefused) return;
  const std::lock_guard lock(reason_mutex_);
  if (device_reason_.empty()) device_reason_ = writer_->device_reason();
}

std::string SharedLane::device_reason() const {
  const std::lock_guard lock(reason_mutex_);
  return device_reason_.empty() ? "" : "not cuda_ipc: " + device_reason_;
}

// Until the receiver has looked at the offer, tensors go through the host's memory, unless that was forbidden.
bool SharedLane::is_device_decided() const {
  if (options_.lane != LaneChoice::kDevice) return true;
  if (device_state_ != wire::DeviceState::kRefused) return device_state_ == wire::DeviceState::kAccepted;
  throw Error(Code::kDevice, "send", "lane cuda_ipc was asked for: " + device_reason_);
}

bool SharedLane::write_whole() {
  Current& now = *current_;
  const bool few = now.item.flight && count_on_devices(now.body) <= wire::kMaxRemoteParts;
  if (few && writer_->fits_device(bytes_on_devices(now.body))) {
    const auto place = writer_->place_remote(now.body, now.mark);
    if (place) begin_remote(*place);
    return place.has_value();
  }
  const auto place = writer_->place(wire::EntryKind::kWhole, now.left);
  if (place) begin(*place);
  return place.has_value();
}

void SharedLane::begin_remote(const SegmentWriter::Place& place) {
  Current& now = *current_;
  went_remote_ = true;
  now.started = true;
  now.left = 0;
  now.item.flight->start(copies_);
  writer_->fill_remote(place, now.body, now.mark, copies_);
  now.item.flight->finish(copies_);
  begun_.push_back({place, now.mark, copies_.mark(), std::nullopt});
}

bool SharedLane::write_pieces() {
  Current& now = *current_;
  while (now.left > 0) {
    std::uint64_t step = std::min(now.left, writer_->room_for_piece());
    // A first piece must leave something for a second.
    if (!now.started && step == now.left) step = now.left / 2 / kAlign * kAlign;
    if (step == 0 && (now.started || now.left > kAlign)) return false;
    const auto place = writer_->place(now.started ? wire::EntryKind::kPiece : wire::EntryKind::kFirst, step);
    if (!place) return false;
    begin(*place);
    if (now.left > 0) publish_landed();  // the receiver shall go on; the last one belongs to end_current
  }
  return true;
}

void SharedLane::begin(SegmentWriter::Place place) {
  Current& now = *current_;
  device::Copies* const copies = now.item.flight ? &copies_ : nullptr;
  if (copies != nullptr && !std::exchange(now.started, true)) now.item.flight->start(copies_);
  now.started = true;
  writer_->fill(place, now.reader, now.mark, copies);
  now.left -= place.size;
  if (copies != nullptr && now.left == 0) now.item.flight->finish(copies_);  // before the mark: who waits for it waits for no thread
  begun_.push_back({place, now.mark, copies_.mark(), std::nullopt});
}

// All of it has been copied, or the devices were asked to.
void SharedLane::end_current() {
  Outgoing& item = current_->item;
  if (item.flight) item.ticket->mark_started();
  begun_.back().item = std::move(item);
  current_.reset();
  patience_ = Deadline::never();
}

void SharedLane::publish_landed() {
  while (!begun_.empty()) {
    Begun& next = begun_.front();
    if (next.landing && !next.landing->is_over()) return copies_.check();
    if (next.landing) writer_->sum_up(next.place);
    writer_->publish(next.place, next.mark);
    nudge_ |= writer_->take_nudge_request();  // after it is there: who arms himself before that looks for it himself
    if (next.item) finish(*next.item);
    begun_.pop_front();
  }
}

void SharedLane::finish(Outgoing& item) {
  add(stats_.dicts_sent);
  if (item.in_flight) stats_.send_ns.add(now_ns() - item.accepted_ns);
  leave_flight(item, stats_);
  item.ticket->mark_sent();
  budget_.release(item.held_bytes, 1);
}

bool SharedLane::is_starved() {
  if (!writer_->all_taken()) {
    patience_ = Deadline::never();
    return false;
  }
  if (patience_.is_never()) patience_ = Deadline::after(kPatience_s);
  return patience_.expired();
}

bool SharedLane::holds_device_memory() const {
  const std::lock_guard lock(mutex_);
  return writer_ && writer_->holds_device_memory();
}

bool SharedLane::idle() const {
  const std::lock_guard lock(mutex_);
  return !current_ && !cancel_ && queue_.empty() && begun_.empty() && late_.empty();
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
  const std::size_t before = late_.size();
  if (current_ && current_->item.deadline.expired()) {
    if (current_->started) {
      cancel_ = current_->mark;
      add(stats_.cancelled);
    }
    late_.push_back(std::move(current_->item));
    current_.reset();
  }
  std::deque<Outgoing> keep;
  for (Outgoing& item : queue_) {
    if (item.deadline.expired()) {
      late_.push_back(std::move(item));
    } else {
      keep.push_back(std::move(item));
    }
  }
  queue_ = std::move(keep);
  if (late_.size() == before) return false;
  if (begun_.empty()) fail_late();
  return true;
}

void SharedLane::fail_late() {
  if (late_.empty()) return;
  const Error error(Code::kPoolTimeout, "send",
                    "no room for a dict until its deadline: " + writer_->held_text(options_.next) +
                        "; the dict was not delivered, the link goes on");
  fail_all(late_, error);
}

bool SharedLane::owes_nudge() {
  const std::lock_guard lock(mutex_);
  return nudge_;
}

bool SharedLane::take_nudge() {
  const std::lock_guard lock(mutex_);
  const bool asked = nudge_asked_.exchange(false);
  return std::exchange(nudge_, false) || asked;
}

std::string SharedLane::held_text() {
  const std::lock_guard lock(mutex_);
  return writer_ ? writer_->held_text(options_.next) : "";
}

void SharedLane::give_up() noexcept {
  end_controls();
  const std::lock_guard lock(mutex_);
  writer_.reset();
}

void SharedLane::wake() {
  const std::lock_guard lock(mutex_);
  if (writer_) writer_->wake_room();
}

void SharedLane::close(const Error& reason) noexcept {
  end_controls();
  std::unique_ptr<SegmentWriter> writer;
  std::vector<Outgoing> reading;  // that a device may be about
  {
    const std::lock_guard lock(mutex_);
    writer = std::move(writer_);
    fail_all(queue_, reason);
    if (current_ && !current_->started) {
      fail_one(current_->item, reason);
      current_.reset();
    }
    reading = std::exchange(late_, {});
    for (Begun& one : begun_) {
      if (one.item) reading.push_back(std::move(*one.item));
    }
    if (current_) reading.push_back(std::move(current_->item));
    begun_.clear();
    current_.reset();
  }
  const bool drained = copies_.drain(Deadline::after(kDrain_s));
  for (Outgoing& item : reading) fail_one(item, reason, !drained && item.flight);
  if (writer && !drained) writer->abandon();
}

template <typename Items>
void SharedLane::fail_all(Items& items, const Error& reason) {
  for (Outgoing& item : items) fail_one(item, reason);
  items.clear();
}

void SharedLane::fail_one(Outgoing& item, const Error& reason, bool still_read) {
  leave_flight(item, stats_);
  budget_.release(item.held_bytes, 1);
  item.ticket->fail(reason, still_read);
}

}  // namespace zmqpp::engine
