#include "engine/receiver.h"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/duration.h"
#include "base/thread.h"
#include "engine/arrival.h"
#include "engine/frame.h"

namespace zmqpp::engine {
namespace {

constexpr int kMessagesPerTurn = 64;  // then look at the peer again
constexpr std::uint64_t kCallerPause_ns = 1'000'000;  // a caller that reads by itself comes back within this, or is done
constexpr long kCallerPoll_ms = 1;
constexpr double kRetry_s = 0.5;  // longer than libzmq takes to say that it tries again by itself
constexpr int kLooks = 8;            // at whether a sign of life came, in the time after which the sender is given up
constexpr double kFirstPause_s = 0.1, kLongestPause_s = 1.0;  // between knocks where our key is not wanted
constexpr int kConnect_ms = 2000;     // the kernel would ask a host that was cut off ever more rarely
constexpr int kReceiveHwm = 32;       // chunks of a MiB: bounds what lies in ZeroMQ's queue

void configure(net::Socket& socket, const Options& options, int io_threads) {
  socket.set_i64(net::kAffinity, 1 << (io_threads - 1));  // one I/O thread, as PeerWatch needs; the last one
  socket.set(net::kRcvHwm, kReceiveHwm);
  socket.set(net::kLinger, 0);
  const std::size_t overhead = options.keys.is_given() ? net::kCurveOverhead : 0;
  socket.set_i64(net::kMaxMsgSize, static_cast<long long>(options.limits.max_frame_bytes() + overhead));
  socket.set(net::kHandshakeIvl, static_cast<int>(options.handshake_s * 1000));
  socket.set(net::kReconnectIvl, 50);
  socket.set(net::kReconnectIvlMax, 1000);
  socket.set_text(net::kZapDomain, net::kConnectDomain);
  net::use_keys_to_connect(socket, options.keys);
  if (options.connect.rfind("tcp://", 0) != 0) return;
  socket.set(net::kConnectTimeout, kConnect_ms);
  socket.set(net::kIpv6, 1);  // names may resolve to either family; IPv4 keeps working
  socket.set(net::kTcpKeepalive, 1);
  socket.set(net::kTcpKeepaliveIdle, 5);
  socket.set(net::kTcpKeepaliveIntvl, 2);
  socket.set(net::kTcpKeepaliveCnt, 5);
}

bool passes_on(Relay relay, wire::Route route) {
  switch (route) {
    case wire::Route::kLink: return false;
    case wire::Route::kRequest: return relay == Relay::kForward;
    case wire::Route::kReply:
    case wire::Route::kNotice: return relay != Relay::kNone;
  }
  return false;
}

bool delivers(Relay relay, wire::Route route) { return route != wire::Route::kReply || relay == Relay::kNone; }

}  // namespace

Receiver::Receiver(net::Context& context, const Options& options, Inbox& inbox, Event& wake, Onward* onward,
                   memory::Pool* relay_frames, Budget& budget, std::shared_ptr<Stats> stats)
    : options_(options),
      inbox_(inbox),
      wake_(wake),
      onward_(onward),
      relay_frames_(relay_frames),
      budget_(budget),
      shared_stats_(std::move(stats)),
      stats_(*shared_stats_),
      socket_(context, net::kPull),
      watch_(context, socket_, options_.keys.is_given()),
      assembly_(stats_),
      device_(options_.device) {
  configure(socket_, options_, context.io_threads());
  readable_ = socket_.descriptor();
  socket_.connect(options_.connect);
  inbox_.attach(this);
  thread_ = start_thread("zmqpp-recv", [this] { run(); });
}

Receiver::~Receiver() { close(); }

bool Receiver::wait_peer(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline.at(), [&] { return greeted_ || over_; });
  if (over_) throw inbox_.error().value_or(Error(Code::kClosed, "receive", "this link was closed"));
  return greeted_;
}

bool Receiver::peer_connected() const {
  const std::lock_guard lock(mutex_);
  return greeted_ && !over_;
}

std::string Receiver::last_refusal() const {
  const std::lock_guard lock(mutex_);
  return last_refusal_;
}

std::string Receiver::key_trouble() const {
  const std::lock_guard lock(mutex_);
  return key_trouble_;
}

std::string Receiver::lane_reason() const {
  const std::lock_guard lock(mutex_);
  return ring_ ? ring_->device_reason() : lane_reason_;
}

Lane Receiver::lane() const {
  const Lane lane = lane_;
  if (lane != Lane::kShared) return lane;
  const std::lock_guard lock(mutex_);
  return ring_ && ring_->reads_devices() ? Lane::kDevice : lane;
}

void Receiver::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.signal();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard reading(reading_);
  const std::lock_guard lock(mutex_);
  ring_.reset();  // tensors keep its memory
}

// ---- receiver thread --------------------------------------------------------------------------------------------

void Receiver::run() noexcept {
  Error error(Code::kClosed, "receive", "this link was closed");
  try {
    while (turn()) {
    }
  } catch (const Error& e) {
    const bool names_it = e.code() == Code::kPeerLost || e.code() == Code::kPeerClosed;
    error = Error(e.code(), e.op(), names_it ? e.detail() : "from " + who() + ": " + e.detail());
  } catch (const std::exception& e) {
    error = Error(Code::kResource, "receive", e.what());
  }
  {
    const std::lock_guard reading(reading_);
    finished_ = true;
    // Closing the socket tells the sender: it loses its peer.
    watch_.close();
    socket_.close();
  }
  inbox_.fail(error);
  const std::lock_guard lock(mutex_);
  over_ = true;
  changed_.notify_all();
}

bool Receiver::turn() {
  wake_.drain();
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return false;
  }
  bool room = true;
  bool caller_reads = false;
  {
    const std::lock_guard reading(reading_);
    if (device_ >= 0) sweep_arrivals();
    if (read_turn(room)) return true;
    caller_reads = caller_ns_ != 0 && now_ns() - caller_ns_ < kCallerPause_ns;
    if (!caller_reads) caller_ns_ = 0;
  }
  // The PULL socket by its descriptor only: callers may read it meanwhile, and read it empty, as it was left here.
  net::PollItem items[3] = {{nullptr, wake_.fd(), net::kPollIn, 0},
                            {watch_.raw(), 0, net::kPollIn, 0},
                            {nullptr, readable_, net::kPollIn, 0}};
  const long left_ms = poll_until_.remaining_ms();
  net::poll(items, room && !caller_reads ? 3 : 2, caller_reads ? std::min(left_ms, kCallerPoll_ms) : left_ms);
  return true;
}

bool Receiver::read_turn(bool& room) {
  if (broken_) throw *broken_;
  if (const std::optional<Error> broken = inbox_.error()) throw *broken;  // what came through the ring was wrong
  drain_controls();
  watch_peer();
  bool more = true;
  for (int i = 0; i < kMessagesPerTurn && more && room; ++i) {
    room = inbox_.has_room();
    if (room) more = read_some();
  }
  if (!room) restart_silence();  // it is we who do not listen
  if (room && !more) {
    if (watch_.lost()) {
      drain_controls();  // its last words
      throw Error(Code::kPeerLost, "receive", who() + " was lost: its connection broke without a goodbye");
    }
    check_silence();
  }
  poll_until_ = silence_.sooner(retry_).sooner(pause_);
  return room && more;
}

// Until nothing is left, or the thread is told to go on: ZeroMQ signals only a reader that found nothing.
void Receiver::read_now() noexcept {
  // A relay must pass on at once what comes while the caller is busy again; others can wait for the thread a moment.
  if (options_.relay == Relay::kNone) caller_ns_ = now_ns();
  pollfd item{readable_, POLLIN, 0};
  if (::poll(&item, 1, 0) <= 0) return;
  const std::unique_lock reading(reading_, std::try_to_lock);
  if (!reading || finished_ || broken_) return;
  try {
    for (int i = 0; i < kMessagesPerTurn && inbox_.has_room(); ++i) {
      if (!read_some()) return;
    }
  } catch (const Error& e) {
    broken_ = e;
  } catch (const std::exception& e) {
    broken_ = Error(Code::kResource, "receive", e.what());
  }
  wake_.signal();
}

void Receiver::take_socket_control(const wire::Head& head, net::Message frame) {
  drain_controls();  // what the sender wrote before it
  ++socket_controls_;
  take_control(head, std::move(frame));
  drain_controls();  // what waited for it
}

void Receiver::read_on() noexcept {
  const std::lock_guard reading(reading_);
  if (caller_ns_.exchange(0) != 0) wake_.signal();
}

void Receiver::watch_peer() {
  watch_.read_events();
  if (watch_.connected() && silence_.is_never()) restart_silence();
  pause_if_turned_away();
  retry_if_stalled();
  const std::lock_guard lock(mutex_);
  last_refusal_ = watch_.last_refusal();
  key_trouble_ = watch_.key_trouble();
}

// libzmq's own pauses start anew with every connection, however it ends: ours grow until the peer has our key.
void Receiver::pause_if_turned_away() {
  if (watch_.connected()) {
    pause_s_ = 0;
  } else if (pause_.expired()) {
    pause_ = Deadline::never();
    socket_.connect(options_.connect);
  } else if (pause_.is_never() && watch_.take_turned_away()) {
    socket_.disconnect(options_.connect);
    pause_s_ = std::clamp(2 * pause_s_, kFirstPause_s, kLongestPause_s);
    pause_ = Deadline::after(pause_s_);
  }
}

// libzmq gives an address up for good where something answered that is no ZeroMQ peer: perhaps only until the sender
// gets its port.
void Receiver::retry_if_stalled() {
  if (!watch_.stalled() || !pause_.is_never()) {
    retry_ = Deadline::never();
  } else if (retry_.is_never()) {
    retry_ = Deadline::after(kRetry_s);
  } else if (retry_.expired()) {
    retry_ = Deadline::after(kRetry_s);
    socket_.connect_again(options_.connect);
  }
}

// The sender beats when idle, so silence means a hung process, a dead host or a cut network.
void Receiver::restart_silence() {
  const double patience_s = options_.bear_silence ? 0 : options_.peer_timeout_s;
  silence_ = patience_s > 0 ? Deadline::after(patience_s / kLooks) : Deadline::never();
  looks_ = 0;
}

// Looks are counted, not seconds: however long this whole process or its machine stood still, that was one look.
void Receiver::check_silence() {
  if (!silence_.expired()) return;
  silence_ = Deadline::after(options_.peer_timeout_s / kLooks);
  if (++looks_ < kLooks) return;
  throw Error(Code::kPeerLost, "receive",
              who() + " gave no sign of life for " + seconds_text(options_.peer_timeout_s));
}

bool Receiver::read_some() {
  net::Message frame;
  if (!socket_.try_receive(frame)) return false;
  if (frame.more()) throw Error(Code::kMalformed, "receive", "a message of more than one frame");
  const auto head = wire::read_head(frame.bytes(), frame.size(), options_.limits);
  // A sender that came back after the loss starts a new session, which is not part of this link.
  if (watch_.lost() && head.kind == wire::Kind::kHello && peer_connected()) return false;
  assembly_.check_order(head);
  restart_silence();
  add(stats_.messages_received);
  add(stats_.bytes_received, wire::kHeadSize + head.body_size);
  take(head, std::move(frame));
  return true;
}

void Receiver::take(const wire::Head& head, net::Message frame) {
  std::optional<Dict> dict;
  switch (head.kind) {
    case wire::Kind::kHello: return take_hello(frame);
    case wire::Kind::kBeat: return;
    case wire::Kind::kBye:
      drain_controls();
      throw Error(Code::kPeerClosed, "receive", who() + " closed the link");
    case wire::Kind::kControl: return take_socket_control(head, std::move(frame));
    case wire::Kind::kDict: dict = assembly_.take_dict(head, frame); break;
    case wire::Kind::kChunk: dict = assembly_.take_chunk(head, frame); break;
    case wire::Kind::kCancel: add(stats_.cancelled); return assembly_.take_cancel(head);
    case wire::Kind::kNudge:
      drain_controls();
      return inbox_.read_ring();
  }
  if (!dict) return;
  add(stats_.dicts_received);
  inbox_.put(std::move(*dict));
}

void Receiver::take_hello(net::Message& frame) {
  const wire::Hello hello = wire::read_hello(body_of(frame), body_size(frame));
  check_neighbour(hello);
  choose_lane(hello);
  const std::lock_guard lock(mutex_);
  greeted_ = true;
  changed_.notify_all();
}

void Receiver::check_neighbour(const wire::Hello& hello) const {
  if (options_.world_size > 0 && hello.world_size > 0 && options_.rank >= 0) {
    const std::int64_t expected = (options_.rank + options_.world_size - 1) % options_.world_size;
    if (hello.world_size != options_.world_size || hello.rank != expected) {
      throw Error(Code::kConnect, "receive",
                  "the sender is rank " + std::to_string(hello.rank) + " of " + std::to_string(hello.world_size) +
                      ", expected rank " + std::to_string(expected) + " of " + std::to_string(options_.world_size) +
                      "; check the addresses");
    }
  }
  if (!options_.expect.empty() && hello.name != options_.expect) {
    throw Error(Code::kConnect, "receive",
                options_.connect + " is where " + hello.name + " binds, not " + options_.expect + "; check the addresses");
  }
}

void Receiver::take_control(const wire::Head& head, net::Message frame) {
  add(stats_.control_received);
  if (ages(head.route) && head.epoch < inbox_.epoch()) return add(stats_.stale);
  // Before delivery: the next place can prepare while this one works.
  if (onward_ != nullptr && passes_on(options_.relay, head.route)) relay(head, frame);
  if (!delivers(options_.relay, head.route)) return;
  inbox_.put(Control{std::move(frame), head.route, head.tag, head.epoch});
}

void Receiver::relay(const wire::Head& head, net::Message& frame) {
  if (onward_->try_control({.route = head.route, .tag = head.tag, .epoch = head.epoch}, body_of(frame), head.body_size)) {
    return add(stats_.relayed);
  }
  budget_.take(head.body_size);
  BudgetedFrame copy = make_frame(head.body_size, budget_, *relay_frames_, stats_);
  std::memcpy(body_of(copy.frame), body_of(frame), head.body_size);
  Outgoing item;
  item.route = head.route;
  item.tag = head.tag;
  item.epoch = head.epoch;
  item.frame = std::move(copy.frame);
  item.held_bytes = copy.held_bytes;
  if (const std::optional<Error> full = onward_->relay(std::move(item))) throw *full;
}

std::string Receiver::who() const { return options_.previous + " (sender at " + options_.connect + ")"; }

}  // namespace zmqpp::engine
