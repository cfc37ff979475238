#include "engine/sender.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/duration.h"
#include "base/thread.h"
#include "memory/segment.h"

namespace zmqpp::engine {
namespace {

// How long a connected receiver may take to answer the offer of a segment. One with an address of another host will
// hardly be able to: it may be in another container of this one.
constexpr double kSettleLocal_s = 1.0;
constexpr double kSettleRemote_s = 0.1;
constexpr double kSettleForced_s = 2.0;  // where the socket is no alternative
constexpr long kSettlePoll_ms = 1;
constexpr double kLandingLook_s = 0.1;  // at whether the device that copies still works
constexpr double kLeave_s = 0.005;      // how late this side notices that it may leave
constexpr double kRoomSlice_s = 0.02;  // how late a lost peer is noticed while the segment is full

Error closed_error() { return Error(Code::kClosed, "send", "this link was closed"); }

}  // namespace

Sender::Sender(net::Context& context, const Options& options, Budget& budget, Event& wake, memory::Pool& pool,
               Stats& stats, net::Refusals& refusals)
    : options_(options), budget_(budget), wake_(wake), stats_(stats), stream_(context, options, budget, pool, stats, wake, refusals) {
  open_shared();
  wire::Hello hello{.rank = options_.rank, .world_size = options_.world_size, .name = options_.name};
  if (shared_) {
    hello.segment_bytes = shared_->writer().payload_bytes();
    hello.boot_id = memory::boot_id();
    hello.segment = shared_->writer().name();
  }
  hello.no_segment = options_.lane == LaneChoice::kSocket ? "it was told to use the socket" : lane_reason_;
  stream_.offer(hello);
  thread_ = start_thread("zmqpp-send", [this] { run(); });
}

void Sender::open_shared() {
  memory::remove_dead_segments();
  if (options_.lane == LaneChoice::kSocket) {
    lane_ = Lane::kSocket;
    return;
  }
  try {
    shared_ = std::make_unique<SharedLane>(stream_.session(), options_, budget_, stats_, wake_);
  } catch (const Error& e) {
    if (must_share(options_.lane) || e.code() != Code::kSharedMemory) throw;
    lane_reason_ = e.detail();
    lane_ = Lane::kSocket;
  }
}

Sender::~Sender() { close(Deadline::after(0)); }

bool Sender::try_shared(const std::vector<Span>& body, const DictMark& mark) {
  if (lane_ != Lane::kShared) return false;
  {
    const std::lock_guard lock(mutex_);
    if (error_ || closing_) return false;  // push says which
  }
  try {
    if (!shared_->try_send(body, mark)) return false;
  } catch (const Error& e) {
    fail(e);
    throw;
  }
  if (shared_->owes_nudge()) wake();  // the sender thread sends it
  return true;
}

bool Sender::try_control(const ControlMark& mark, const std::uint8_t* body, std::size_t size) {
  if (lane_ != Lane::kShared) return false;
  std::uint64_t after = 0;
  {
    const std::lock_guard lock(mutex_);
    after = socket_controls_;
    if (error_ || closing_ || after != stream_.controls_sent()) return false;  // push says which, or keeps the order
  }
  try {
    const SegmentWriter::Written written = shared_->try_control(mark, after, body, size);
    if (written == SegmentWriter::Written::kUnseen) nudge();
    return written != SegmentWriter::Written::kNoRoom;
  } catch (const Error& e) {
    fail(e);
    throw;
  }
}

// By this thread when it can: the message may have to go further.
void Sender::nudge() {
  {
    const std::unique_lock stream(stream_mutex_, std::try_to_lock);
    if (stream && stream_.nudge_now()) {
      if (!stream_.is_free()) wake_.signal();
      return;
    }
  }
  shared_->ask_nudge();
  wake();
}

void Sender::use_device(device::Device& device) {
  if (shared_ && lane_ != Lane::kSocket) shared_->pin(device);
}

void Sender::push(Outgoing item) {
  if (send_now(item)) return;
  const bool begins_here = item.flight != nullptr;  // the devices are asked now, not when the sender thread has woken
  bool shared = false;
  {
    const std::lock_guard lock(mutex_);
    if (error_ || closing_) {
      leave_flight(item, stats_);
      budget_.release(item.held_bytes, 1);
      throw error_ ? *error_ : closed_error();
    }
    if (item.kind == wire::Kind::kDict && lane_ == Lane::kShared) {
      shared_->push(std::move(item));
      shared = true;
    } else {
      soonest_ = soonest_.sooner(item.deadline);
      count_socket(item);
      queue_.push_back(std::move(item));
    }
  }
  if (begins_here && shared) begin_shared();
  wake();
}

// An error becomes the half's, and so the ticket's.
void Sender::begin_shared() {
  try {
    shared_->try_pump();
  } catch (const Error& e) {
    fail(e);
  }
}

bool Sender::relay(Outgoing item) {
  item.relayed = true;
  if (send_now(item)) return true;
  {
    const std::lock_guard lock(mutex_);
    const bool is_over = error_ || closing_;
    if (is_over || relays_ >= kMaxRelays) {
      budget_.release(item.held_bytes, 1);
      return is_over;
    }
    ++relays_;
    count_socket(item);
    queue_.push_back(std::move(item));
  }
  wake();
  return true;
}

// One hand-over less: the caller's thread gives the message to ZeroMQ when nothing is in front of it.
bool Sender::send_now(Outgoing& item) {
  if (item.kind == wire::Kind::kDict && lane_ != Lane::kSocket) return false;
  const std::unique_lock stream(stream_mutex_, std::try_to_lock);
  if (!stream) return false;
  {
    const std::lock_guard lock(mutex_);
    if (error_ || closing_ || !queue_.empty()) return false;
    if (!stream_.is_free() || !item.payload.empty()) return false;
    count_socket(item);
  }
  stream_.send_now(item);
  if (!stream_.is_free()) wake_.signal();  // ZeroMQ's queue is full: the sender thread waits for it
  return true;
}

void Sender::wake() {
  wake_.signal();
  if (waits_for_room_) shared_->wake();
}

bool Sender::wait_peer(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline.at(), [&] { return (connected_ && lane_ != Lane::kUndecided) || error_; });
  if (error_) throw *error_;
  return connected_ && lane_ != Lane::kUndecided;
}

bool Sender::peer_connected() const {
  const std::lock_guard lock(mutex_);
  return connected_;
}

std::string Sender::lane_reason() const {
  if (lane_ == Lane::kShared) return shared_->device_reason();
  const std::lock_guard lock(mutex_);
  return lane_reason_;
}

Lane Sender::lane() const {
  const Lane lane = lane_;
  return lane == Lane::kShared ? shared_->lane() : lane;
}

std::string Sender::held_text() const { return lane_ == Lane::kShared ? shared_->held_text() : ""; }

std::optional<Error> Sender::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void Sender::fail(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
  }
  wake();
}

void Sender::leave(const Deadline& linger) {
  {
    const std::lock_guard lock(mutex_);
    if (!closing_) linger_ = linger;
    closing_ = true;
  }
  wake();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return error_.has_value(); });  // shut_down tells
}

void Sender::close(const Deadline& linger) {
  leave(linger);
  if (thread_.joinable()) thread_.join();
}

// ---- sender thread ----------------------------------------------------------------------------------------------

void Sender::run() noexcept {
  std::optional<Error> error;
  try {
    while (turn()) {
    }
  } catch (const Error& e) {
    error = e;
  } catch (const std::exception& e) {
    error = Error(Code::kResource, "send", e.what());
  }
  shut_down(error);
}

bool Sender::turn() {
  wake_.drain();  // first: what is signalled later is seen by this round or wakes the next
  const SharedLane::Progress shared = pump_shared();
  std::unique_lock stream(stream_mutex_);
  stream_.watch_peer();
  note_peer();
  choose_lane();
  const Stream::Progress progress = stream_.send_ready([this](bool only_control) { return next_item(only_control); });
  const bool removed = expire();  // after sending: even a deadline of zero gets one attempt
  if (finished()) return false;
  if (removed) return true;
  if (progress == Stream::Progress::kIdle && may_say_bye()) {
    stream_.say_bye();
    return true;
  }
  const Deadline until = stream_.wait_until(progress);
  stream.unlock();
  wait(progress, shared, until);
  return true;
}

void Sender::note_peer() {
  if (!stream_.connected()) return;
  const std::lock_guard lock(mutex_);
  if (connected_) return;
  connected_ = true;
  changed_.notify_all();
}

void Sender::choose_lane() {
  if (lane_ != Lane::kUndecided) return;
  switch (shared_->writer().state()) {
    case wire::SegmentState::kAccepted: return settle(Lane::kShared, "");
    case wire::SegmentState::kRefused: return settle(Lane::kSocket, "the receiver was told to use the socket");
    default: break;
  }
  if (!is_settling()) return;
  const double patience = must_share(options_.lane) ? kSettleForced_s
                          : stream_.peer_is_local()            ? kSettleLocal_s
                                                               : kSettleRemote_s;
  if (settle_.is_never()) settle_ = Deadline::after(patience);
  if (!settle_.expired() || !shared_->writer().withdraw()) return;
  settle(Lane::kSocket, "the receiver did not open the segment within " + seconds_text(patience) +
                            ": it is on another host, in another container or another user's");
}

// The receiver has the offer, or will in a moment.
bool Sender::is_settling() const {
  return lane_ == Lane::kUndecided && stream_.connected() && stream_.hello_sent();
}

// What waited for the decision goes first.
void Sender::settle(Lane lane, const std::string& reason) {
  shared_->writer().settled();
  if (lane == Lane::kSocket && must_share(options_.lane)) {
    throw Error(Code::kSharedMemory, "send", std::string("lane ") + (options_.lane == LaneChoice::kDevice ? "cuda_ipc" : "shm") + " was asked for: " + reason);
  }
  const std::lock_guard lock(mutex_);
  if (lane == Lane::kShared) {
    std::deque<Outgoing> rest;
    for (Outgoing& item : queue_) {
      if (item.kind == wire::Kind::kDict) {
        shared_->push(std::move(item));
      } else {
        rest.push_back(std::move(item));
      }
    }
    queue_ = std::move(rest);
    wake_.signal();
  }
  if (lane == Lane::kSocket) shared_->give_up();
  lane_reason_ = reason;
  lane_ = lane;
  changed_.notify_all();
}

SharedLane::Progress Sender::pump_shared() {
  if (lane_ != Lane::kShared) return SharedLane::Progress::kIdle;
  const SharedLane::Progress progress = shared_->pump();
  if (shared_->take_nudge()) {
    const std::lock_guard stream(stream_mutex_);
    stream_.nudge();
  }
  return progress;
}

// Between the chunks of a dict only control messages may pass, and only those in front of the next dict.
std::optional<Outgoing> Sender::next_item(bool only_control) {
  const std::lock_guard lock(mutex_);
  const auto allowed = [&](const Outgoing& item) {
    return item.kind == wire::Kind::kControl || (!only_control && lane_ != Lane::kUndecided);
  };
  auto found = queue_.begin();
  // Before the lane is decided dicts wait, and control messages pass them.
  if (lane_ == Lane::kUndecided) found = std::find_if(queue_.begin(), queue_.end(), allowed);
  if (found == queue_.end() || !allowed(*found)) return std::nullopt;
  Outgoing item = std::move(*found);
  queue_.erase(found);
  if (item.relayed) --relays_;
  return item;
}

bool Sender::expire() {
  bool removed = stream_.expire();
  if (lane_ == Lane::kShared) removed |= shared_->expire();
  std::deque<Outgoing> late;
  {
    const std::lock_guard lock(mutex_);
    if (!soonest_.expired()) return removed;
    soonest_ = Deadline::never();
    std::deque<Outgoing> keep;
    for (Outgoing& item : queue_) {
      const bool expired = item.deadline.expired();
      if (!expired) soonest_ = soonest_.sooner(item.deadline);
      (expired ? late : keep).push_back(std::move(item));
    }
    queue_ = std::move(keep);
  }
  for (Outgoing& item : late) stream_.drop_expired(std::move(item));
  return removed || !late.empty();
}

bool Sender::may_say_bye() {
  const std::lock_guard lock(mutex_);
  const bool idle = lane_ != Lane::kShared || (shared_->idle() && !shared_->holds_device_memory());
  return closing_ && queue_.empty() && !stream_.bye_sent() && idle;
}

bool Sender::finished() {
  const std::lock_guard lock(mutex_);
  if (error_) throw *error_;
  if (!closing_) return false;
  // The receiver hangs up when it has read the goodbye: then everything has arrived. ZeroMQ's own linger knows less,
  // and lasts its full time when the peer leaves at the same moment.
  return (stream_.bye_sent() && stream_.peer_lost()) || !connected_ || linger_.expired();
}

void Sender::wait(Stream::Progress progress, SharedLane::Progress shared, Deadline until) {
  if (progress == Stream::Progress::kMore) return;
  {
    const std::lock_guard lock(mutex_);
    until = until.sooner(soonest_);
    if (closing_) until = until.sooner(linger_);
    // Nothing tells when the receiver has read the last of it.
    if (closing_ && shared_ && shared_->holds_device_memory()) until = until.sooner(Deadline::after(kLeave_s));
  }
  if (shared == SharedLane::Progress::kLanding) {
    until = until.sooner(shared_->soonest()).sooner(Deadline::after(kLandingLook_s));
  }
  if (shared == SharedLane::Progress::kNoRoom) {
    // Not in the poll: whoever wakes this thread also rings here.
    const std::uint64_t start = now_ns();
    const std::uint32_t seen = shared_->room();
    waits_for_room_ = true;
    const Deadline slice = until.sooner(shared_->soonest()).sooner(Deadline::after(kRoomSlice_s));
    if (!wake_.is_signalled()) shared_->wait_room(seen, slice);
    waits_for_room_ = false;
    return add(stats_.send_wait_ns, now_ns() - start);
  }
  net::PollItem items[3] = {{nullptr, wake_.fd(), net::kPollIn, 0},
                            {stream_.monitor(), 0, net::kPollIn, 0},
                            {stream_.socket(), 0, net::kPollOut, 0}};
  const long left_ms = until.remaining_ms();
  const long timeout_ms = is_settling() ? std::min(left_ms, kSettlePoll_ms) : left_ms;
  net::poll(items, progress == Stream::Progress::kBlocked ? 3 : 2, timeout_ms);
}

void Sender::shut_down(const std::optional<Error>& error) noexcept {
  std::deque<Outgoing> left;
  Error reason = error ? *error : closed_error();
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = reason;
    reason = *error_;
    left.swap(queue_);
    relays_ = 0;
    connected_ = false;
    changed_.notify_all();
  }
  budget_.fail(reason);
  for (Outgoing& item : left) {
    leave_flight(item, stats_);
    if (item.ticket) item.ticket->fail(reason);
    budget_.release(item.held_bytes, 1);
  }
  left.clear();
  {
    const std::lock_guard stream(stream_mutex_);
    stream_.fail(reason);
    stream_.close();
  }
  if (shared_) shared_->close(reason);  // last: the peer shall not wait for a device that hangs
}

}  // namespace zmqpp::engine
