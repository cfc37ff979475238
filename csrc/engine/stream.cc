#include "engine/stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/duration.h"
#include "base/random.h"
#include "engine/frame.h"
#include "net/socket_path.h"

namespace zmqpp::engine {
namespace {

constexpr int kMessagesPerTurn = 64;  // then look at the peer again
constexpr int kLooks = 8;             // at whether the peer's host answers, in the time after which it is given up
constexpr double kLook_s = 0.5;       // but no more rarely than that
constexpr double kLandingLook_s = 0.1;  // at whether the device still works
constexpr double kDrain_s = 30;         // for copies under way, and the computing they wait for
constexpr int kSendHwm = 256;         // of small messages; large ones are bounded by the budget and the pool

void release_chunk(void* bytes, void* hint) {
  static_cast<memory::Pool*>(hint)->give_back(static_cast<std::uint8_t*>(bytes));
}

bool is_local(const std::string& endpoint) { return endpoint.rfind("tcp://", 0) != 0; }

void configure(net::Socket& socket, const Options& options) {
  socket.set_i64(net::kAffinity, 1);  // one I/O thread, as PeerWatch needs; the first one
  socket.set(net::kSndHwm, kSendHwm);
  socket.set(net::kRcvHwm, 1);
  socket.set_i64(net::kMaxMsgSize, 1024);  // enough for CURVE; a receiver says nothing but ZeroMQ's own commands
  socket.set(net::kLinger, 0);
  socket.set(net::kHandshakeIvl, static_cast<int>(options.handshake_s * 1000));
  socket.set_text(net::kZapDomain, net::kBindDomain);
  net::use_keys_to_bind(socket, options.keys);
  if (is_local(options.bind)) return;
  if (options.bind.find('[') != std::string::npos) socket.set(net::kIpv6, 1);
  socket.set(net::kTcpKeepalive, 1);
  socket.set(net::kTcpKeepaliveIdle, 5);
  socket.set(net::kTcpKeepaliveIntvl, 2);
  socket.set(net::kTcpKeepaliveCnt, 5);
}

}  // namespace

Stream::Stream(net::Context& context, const Options& options, Budget& budget, memory::Pool& pool, Stats& stats,
               Event& wake, net::Refusals& refusals)
    : options_(options),
      budget_(budget),
      pool_(pool),
      stats_(stats),
      session_(random_u64()),
      gate_(context, options.keys, options.handshake_s, wake, refusals),
      socket_(context, net::kPush),
      watch_(context, socket_, gate_),
      copies_(wake) {
  configure(socket_, options_);
  const net::SocketPath path(options_.bind);  // until the file is ours
  socket_.bind(options_.bind);
  bound_ = socket_.last_endpoint();
  file_.emplace(bound_);
}

void Stream::watch_peer() {
  watch_.read_events();
  if (watch_.lost() && !bye_sent_) {
    throw Error(Code::kPeerLost, "send", options_.next + " (receiver on " + bound_ + ") closed its connection or died");
  }
  if (watch_.crowded()) {
    throw Error(Code::kConnect, "send",
                "a second receiver connected to " + bound_ + ", which would split the stream; give each link its own " +
                    (is_local(bound_) ? "path" : "port"));
  }
  check_silence();
}

// Twice in a row: a probe that is on its way has not been answered either.
void Stream::check_silence() {
  if (options_.peer_timeout_s <= 0 || is_local(bound_) || !watch_.connected()) return;
  if (!next_look_.is_never() && !next_look_.expired()) return;
  const double look_s = std::min(kLook_s, options_.peer_timeout_s / kLooks);
  next_look_ = Deadline::after(look_s);
  const bool before = std::exchange(unanswered_, watch_.is_unanswered(options_.peer_timeout_s - 2 * look_s));
  if (!before || !unanswered_) return;
  throw Error(Code::kPeerLost, "send",
              options_.next + " (receiver on " + bound_ + ") is cut off: its host has acknowledged nothing for " +
                  seconds_text(options_.peer_timeout_s));
}

// ---- sending ----------------------------------------------------------------------------------------------------

Stream::Progress Stream::send_ready(const NextItem& next) {
  note_copied();  // whether or not ZeroMQ takes anything
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    if (!pending_) {
      const Progress built = build_next(next);
      if (built != Progress::kMore) return built;
    }
    if (!socket_.try_send(pending_->frame)) return Progress::kBlocked;
    on_sent();
  }
  return Progress::kMore;
}

bool Stream::is_free() const {
  return hello_sent_ && !bye_sent_ && !pending_ && !current_ && !cancel_ && watch_.connected();
}

bool Stream::send_now(Outgoing& item) {
  if (!is_free() || !item.payload.empty()) return false;
  build_item(std::move(item));
  if (socket_.try_send(pending_->frame)) on_sent();  // else the sender thread finds it pending
  return true;
}

bool Stream::nudge_now() {
  if (!is_free()) return false;
  build_plain(wire::Kind::kNudge);
  if (socket_.try_send(pending_->frame)) on_sent();
  return true;
}

void Stream::say_bye() { build_plain(wire::Kind::kBye); }

Stream::Progress Stream::build_next(const NextItem& next) {
  if (bye_sent_) return Progress::kIdle;
  if (!hello_sent_) {
    build_hello();
    return Progress::kMore;
  }
  if (cancel_) {
    put(*std::exchange(cancel_, std::nullopt), net::Message(wire::kHeadSize));
    return Progress::kMore;
  }
  if (std::exchange(nudge_, false)) {
    build_plain(wire::Kind::kNudge);
    return Progress::kMore;
  }
  if (std::optional<Outgoing> item = next(current_.has_value())) {
    build_item(std::move(*item));
    return Progress::kMore;
  }
  if (current_) return build_chunk();
  if (watch_.connected() && next_beat_.expired()) {
    build_plain(wire::Kind::kBeat);
    return Progress::kMore;
  }
  return Progress::kIdle;
}

void Stream::build_hello() {
  const std::string text = wire::write_hello(hello_);
  net::Message frame(wire::kHeadSize + text.size());
  std::memcpy(body_of(frame), text.data(), text.size());
  put({.kind = wire::Kind::kHello}, std::move(frame));
}

void Stream::build_item(Outgoing item) {
  const wire::Head head{.kind = item.kind, .route = item.route, .flags = item.flags, .epoch = item.epoch,
                        .tag = item.tag, .total = item.total};
  put(head, std::move(item.frame));
  pending_->item = std::move(item);
}

Stream::Progress Stream::build_chunk() {
  if (current_->late) return cancel_current() ? Progress::kMore : Progress::kLanding;
  begin_chunks();
  note_copied();
  if (begun_.empty()) return Progress::kNoChunk;
  if (const device::LandingPtr& landing = begun_.front().landing; landing && !landing->is_over()) {
    copies_.check();
    return Progress::kLanding;
  }
  Begun next = std::move(begun_.front());
  begun_.pop_front();
  put(next.head, std::move(next.frame));
  return Progress::kMore;
}

// One at a time where they are there at once; as many as the pool has where a device fills them.
void Stream::begin_chunks() {
  const Current& now = *current_;
  const bool ahead = now.item.flight != nullptr;
  while (now.begun < now.item.total && (ahead || begun_.empty())) {
    if (!begin_chunk()) return;
  }
}

bool Stream::begin_chunk() {
  memory::Chunk chunk = pool_.try_acquire();
  if (!chunk) {
    if (starved_ns_ == 0 && begun_.empty()) starved_ns_ = now_ns();
    return false;
  }
  if (starved_ns_ != 0) add(stats_.send_wait_ns, now_ns() - std::exchange(starved_ns_, 0));
  Current& now = *current_;
  if (now.item.flight && now.begun == 0) begin_device_dict();
  const std::uint64_t left = now.item.total - now.begun;
  const std::size_t size = std::min<std::uint64_t>(left, options_.chunk_bytes);
  const std::size_t before = now.reader.copies();
  now.reader.copy_next(chunk.bytes() + wire::kHeadSize, size, size, &copies_);
  add(stats_.copies_out, now.reader.copies() - before);
  const auto [pool, bytes] = chunk.release();
  const wire::Head head{.kind = wire::Kind::kChunk, .epoch = now.item.epoch, .tag = now.item.tag,
                        .offset = now.begun, .total = now.item.total};
  now.begun += size;
  if (size == left) {
    now.item.deadline = Deadline::never();
    if (now.item.flight) now.item.flight->finish(copies_);  // before the mark: who waits for it waits for no thread
  }
  begun_.push_back({head, net::Message(bytes, wire::kHeadSize + size, release_chunk, pool), copies_.mark()});
  if (size == left && now.item.flight) now.item.ticket->mark_started();
  return true;
}

void Stream::begin_device_dict() {
  Flight& flight = *current_->item.flight;
  pool_.pin(device::Device::of(flight.devices().front()));  // where the link did not know of devices when it opened
  flight.start(copies_);
}

// Nothing reads the source any more, though most of it may still wait to be sent.
void Stream::note_copied() {
  if (!current_ || current_->copied || current_->begun < current_->item.total || is_landing()) return;
  current_->copied = true;
  Outgoing& item = current_->item;
  leave_flight(item, stats_);
  stats_.send_ns.add(now_ns() - item.accepted_ns);
  budget_.release(std::exchange(item.held_bytes, 0), 0);
  item.ticket->mark_copied();  // last: who hears of it finds it counted
}

void Stream::put(const wire::Head& head, net::Message frame) {
  Pending& next = pending_.emplace();
  next.head = head;
  next.head.session = session_;
  next.head.sequence = sequence_;
  next.head.body_size = static_cast<std::uint32_t>(body_size(frame));
  if (options_.checksum) next.head.flags |= wire::kFlagChecked;
  next.frame = std::move(frame);
  wire::write_head(next.head, next.frame.bytes());
  if (options_.checksum) wire::write_checksum(next.frame.bytes(), next.frame.size());
}

void Stream::on_sent() {
  Pending sent = std::move(*pending_);
  pending_.reset();
  ++sequence_;
  if (options_.heartbeat_s > 0) next_beat_ = Deadline::after(options_.heartbeat_s);
  add(stats_.messages_sent);
  add(stats_.bytes_sent, wire::kHeadSize + sent.head.body_size);
  switch (sent.head.kind) {
    case wire::Kind::kHello: hello_sent_ = true; return;
    case wire::Kind::kBye: bye_sent_ = true; return;
    case wire::Kind::kNudge:
    case wire::Kind::kBeat: return;
    case wire::Kind::kCancel: add(stats_.cancelled); return;
    case wire::Kind::kControl:
      ++controls_sent_;
      add(stats_.control_sent);
      if (sent.item->relayed) add(stats_.relayed);
      budget_.release(sent.item->held_bytes, 1);
      return;
    case wire::Kind::kDict:
      if (sent.item->payload.empty()) return on_dict_sent(*sent.item);
      current_.emplace(std::move(*sent.item));
      return;
    case wire::Kind::kChunk:
      add(stats_.chunks_sent);
      current_->offset += sent.head.body_size;
      if (current_->offset < current_->item.total) return;
      on_dict_sent(current_->item);
      current_.reset();
      return;
  }
}

void Stream::on_dict_sent(Outgoing& item) {
  add(stats_.dicts_sent);
  item.ticket->mark_sent();
  budget_.release(item.held_bytes, 1);
}

// ---- deadlines and the end --------------------------------------------------------------------------------------

bool Stream::expire() {
  bool removed = false;
  if (current_ && (current_->late || current_->item.deadline.expired())) removed = cancel_current();
  if (pending_ && pending_->item && pending_->item->deadline.expired()) {
    Outgoing item = std::move(*pending_->item);
    pending_.reset();  // its sequence number was not used
    drop_expired(std::move(item));
    removed = true;
  }
  return removed;
}

// The receiver forgets the half it has. From here on nothing reads the source any more.
bool Stream::cancel_current() {
  if (pending_ && pending_->head.kind == wire::Kind::kChunk) pending_.reset();  // its sequence number was not used
  current_->late = true;
  current_->item.deadline = Deadline::never();
  if (is_landing()) return false;
  begun_.clear();
  Outgoing& item = current_->item;
  cancel_ = wire::Head{.kind = wire::Kind::kCancel, .epoch = item.epoch, .tag = item.tag};
  leave_flight(item, stats_);
  budget_.release(item.held_bytes, 1);
  item.ticket->fail(Error(Code::kPoolTimeout, "send",
                          options_.next + " (receiver on " + bound_ + ") took " + std::to_string(current_->offset) +
                              " of " + std::to_string(item.total) + " bytes of a dict before its deadline" +
                              held_text() + "; the dict was cancelled, the link goes on"));
  current_.reset();
  return true;
}

bool Stream::is_landing() const {
  return std::any_of(begun_.rbegin(), begun_.rend(), [](const Begun& one) { return one.landing && !one.landing->is_over(); });
}

std::string Stream::held_text() const {
  const std::size_t held = pool_.count() - pool_.free_count();
  return ": " + std::to_string(held) + " of " + std::to_string(pool_.count()) + " chunks of " +
         std::to_string(options_.chunk_bytes) + " bytes are on their way to it";
}

// A ticket hears of it. A control message has none: losing it silently would be worse than losing the link.
void Stream::drop_expired(Outgoing item) {
  budget_.release(item.held_bytes, 1);
  const bool never_came = !watch_.connected();
  const Error error(never_came ? Code::kConnectTimeout : Code::kPoolTimeout, "send",
                    never_came ? "no receiver connected to " + bound_ + " in time; is " + options_.next + " running?"
                               : options_.next + " (receiver on " + bound_ + ") took nothing until the deadline" +
                                     held_text());
  if (!item.ticket) throw error;
  leave_flight(item, stats_);
  item.ticket->fail(error);
}

Deadline Stream::wait_until(Progress progress) const {
  Deadline until = Deadline::never();
  if (current_) until = until.sooner(current_->item.deadline);
  if (pending_ && pending_->item) until = until.sooner(pending_->item->deadline);
  if (progress == Progress::kIdle && watch_.connected()) until = until.sooner(next_beat_);
  if (watch_.connected()) until = until.sooner(next_look_);
  if (const auto grant = gate_.grant()) until = until.sooner(grant->until);
  if (progress == Progress::kLanding) until = until.sooner(Deadline::after(kLandingLook_s));
  return until;
}

void Stream::fail(const Error& reason) {
  const bool drained = copies_.drain(Deadline::after(kDrain_s));
  if (!drained) {
    // The device may still write into them: neither the pool nor these chunks are ever used again.
    pool_.abandon();
    for (Begun& one : begun_) new net::Message(std::move(one.frame));
  }
  begun_.clear();
  const auto drop = [&](Outgoing& item) {
    leave_flight(item, stats_);
    if (item.ticket) item.ticket->fail(reason, !drained && item.flight != nullptr);
    budget_.release(item.held_bytes, 1);
  };
  if (current_) drop(current_->item);
  if (pending_ && pending_->item) drop(*pending_->item);
  pending_.reset();
  current_.reset();
}

void Stream::close() noexcept {
  if (socket_.raw() == nullptr) return;
  watch_.close();
  file_->remove();  // before the socket closes, so that no successor can be there yet
  socket_.close();
  gate_.close();
}

}  // namespace zmqpp::engine
