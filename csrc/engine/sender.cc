#include "engine/sender.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/random.h"
#include "base/thread.h"
#include "engine/frame.h"
#include "net/socket_path.h"
#include "wire/hello.h"

namespace zmqpp::engine {
namespace {

constexpr int kMessagesPerTurn = 64;  // then look at the peer again
constexpr int kSendHwm = 256;         // of small messages; large ones are bounded by the budget and the pool

void release_chunk(void* bytes, void* hint) {
  static_cast<memory::Pool*>(hint)->give_back(static_cast<std::uint8_t*>(bytes));
}

bool is_local(const std::string& endpoint) { return endpoint.rfind("tcp://", 0) != 0; }

void configure(net::Socket& socket, const Options& options) {
  socket.set_i64(net::kAffinity, 1);  // one I/O thread, as PeerWatch needs
  socket.set(net::kSndHwm, kSendHwm);
  socket.set(net::kLinger, 0);
  socket.set(net::kHandshakeIvl, static_cast<int>(options.handshake_s * 1000));
  // A ZAP domain makes libzmq refuse peers older than ZMTP 3, for which it takes every stray HTTP client.
  socket.set_text(net::kZapDomain, "zmqpp");
  if (is_local(options.bind)) return;
  if (options.bind.find('[') != std::string::npos) socket.set(net::kIpv6, 1);
  socket.set(net::kTcpKeepalive, 1);
  socket.set(net::kTcpKeepaliveIdle, 5);
  socket.set(net::kTcpKeepaliveIntvl, 2);
  socket.set(net::kTcpKeepaliveCnt, 5);
}

Error closed_error() { return Error(Code::kClosed, "send", "this link was closed"); }

}  // namespace

Sender::Sender(net::Context& context, const Options& options, Budget& budget, Event& wake, memory::Pool& pool,
               Stats& stats)
    : options_(options),
      budget_(budget),
      wake_(wake),
      pool_(pool),
      stats_(stats),
      session_(random_u64()),
      socket_(context, net::kPush),
      watch_(context, socket_) {
  configure(socket_, options_);
  {
    const net::SocketPath path(options_.bind);  // until the file is ours
    socket_.bind(options_.bind);
    bound_ = socket_.last_endpoint();
    file_.emplace(bound_);
  }
  thread_ = start_thread("zmqpp-send", [this] { run(); });
}

Sender::~Sender() { close(Deadline::after(0)); }

void Sender::push(Outgoing item) {
  {
    const std::lock_guard lock(mutex_);
    if (error_ || closing_) {
      budget_.release(item.held_bytes, 1);
      throw error_ ? *error_ : closed_error();
    }
    soonest_ = soonest_.sooner(item.deadline);
    queue_.push_back(std::move(item));
  }
  wake_.signal();
}

bool Sender::relay(Outgoing item) {
  {
    const std::lock_guard lock(mutex_);
    if (error_ || closing_ || relays_ >= kMaxRelays) {
      budget_.release(item.held_bytes, 1);
      return false;
    }
    item.relayed = true;
    ++relays_;
    queue_.push_back(std::move(item));
  }
  wake_.signal();
  return true;
}

bool Sender::wait_peer(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline.at(), [&] { return connected_ || error_; });
  if (error_) throw *error_;
  return connected_;
}

bool Sender::peer_connected() const {
  const std::lock_guard lock(mutex_);
  return connected_;
}

std::optional<Error> Sender::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void Sender::fail(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
  }
  wake_.signal();
}

void Sender::close(const Deadline& linger) {
  {
    const std::lock_guard lock(mutex_);
    if (!closing_) linger_ = linger;
    closing_ = true;
  }
  wake_.signal();
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
  watch_peer();
  const Progress progress = send_ready();
  const bool removed = expire();  // after sending: even a deadline of zero gets one attempt
  if (finished()) return false;
  if (removed) return true;
  if (progress == Progress::kIdle && may_say_bye()) {
    build_plain(wire::Kind::kBye);
    return true;
  }
  wait(progress);
  return true;
}

bool Sender::may_say_bye() {
  const std::lock_guard lock(mutex_);
  return closing_ && queue_.empty() && !bye_sent_;
}

bool Sender::finished() {
  const std::lock_guard lock(mutex_);
  if (error_) throw *error_;
  if (!closing_) return false;
  // The receiver hangs up when it has read the goodbye: then everything has arrived. ZeroMQ's own linger knows less,
  // and lasts its full time when the peer leaves at the same moment.
  return (bye_sent_ && watch_.lost()) || !connected_ || linger_.expired();
}

void Sender::watch_peer() {
  watch_.read_events();
  if (watch_.lost() && !bye_sent_) {
    throw Error(Code::kPeerLost, "send", options_.next + " (receiver on " + bound_ + ") closed its connection or died");
  }
  if (watch_.crowded()) {
    throw Error(Code::kConnect, "send",
                "a second receiver connected to " + bound_ + ", which would split the stream; give each link its own " +
                    (is_local(bound_) ? "path" : "port"));
  }
  if (!watch_.connected()) return;
  const std::lock_guard lock(mutex_);
  if (connected_) return;
  connected_ = true;
  changed_.notify_all();
}

bool Sender::expire() {
  bool removed = false;
  if (current_ && current_->item.deadline.expired()) {
    cancel_current();
    removed = true;
  }
  if (pending_ && pending_->item && pending_->item->deadline.expired()) {
    Outgoing item = std::move(*pending_->item);
    pending_.reset();  // its sequence number was not used
    drop_expired(std::move(item));
    removed = true;
  }
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
  for (Outgoing& item : late) drop_expired(std::move(item));
  return removed || !late.empty();
}

// The receiver forgets the half it has. From here on nothing reads the source any more.
void Sender::cancel_current() {
  if (pending_ && pending_->head.kind == wire::Kind::kChunk) pending_.reset();  // its sequence number was not used
  const Outgoing& item = current_->item;
  cancel_ = wire::Head{.kind = wire::Kind::kCancel, .epoch = item.epoch, .tag = item.tag};
  budget_.release(item.held_bytes, 1);
  item.ticket->fail(Error(Code::kSendTimeout, "send",
                          options_.next + " (receiver on " + bound_ + ") took " + std::to_string(current_->offset) +
                              " of " + std::to_string(item.total) +
                              " bytes of a dict before its deadline; the dict was cancelled, the link goes on"));
  current_.reset();
}

// A ticket hears of it. A control message has none: losing it silently would be worse than losing the link.
void Sender::drop_expired(Outgoing item) {
  budget_.release(item.held_bytes, 1);
  const bool never_came = !watch_.connected();
  const Error error(never_came ? Code::kConnectTimeout : Code::kSendTimeout, "send",
                    never_came ? "no receiver connected to " + bound_ + " in time; is " + options_.next + " running?"
                               : options_.next + " (receiver on " + bound_ + ") took nothing until the deadline");
  if (!item.ticket) throw error;
  item.ticket->fail(error);
}

Sender::Progress Sender::send_ready() {
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    if (!pending_) {
      const Progress built = build_next();
      if (built != Progress::kMore) return built;
    }
    if (!socket_.try_send(pending_->frame)) return Progress::kBlocked;
    on_sent();
  }
  return Progress::kMore;
}

Sender::Progress Sender::build_next() {
  if (bye_sent_) return Progress::kIdle;
  if (!hello_sent_) {
    build_hello();
    return Progress::kMore;
  }
  if (cancel_) {
    stage(*std::exchange(cancel_, std::nullopt), net::Message(wire::kHeadSize));
    return Progress::kMore;
  }
  if (std::optional<Outgoing> item = next_item()) {
    build_item(std::move(*item));
    return Progress::kMore;
  }
  if (current_) return build_chunk() ? Progress::kMore : Progress::kNoChunk;
  if (watch_.connected() && next_beat_.expired()) {
    build_plain(wire::Kind::kBeat);
    return Progress::kMore;
  }
  return Progress::kIdle;
}

// Between the chunks of a dict only control messages may pass, and only those in front of the next dict.
std::optional<Outgoing> Sender::next_item() {
  const std::lock_guard lock(mutex_);
  if (queue_.empty()) return std::nullopt;
  if (current_ && queue_.front().kind != wire::Kind::kControl) return std::nullopt;
  Outgoing item = std::move(queue_.front());
  queue_.pop_front();
  if (item.relayed) --relays_;
  return item;
}

void Sender::build_hello() {
  const std::string text = wire::write_hello({options_.rank, options_.world_size, options_.name});
  net::Message frame(wire::kHeadSize + text.size());
  std::memcpy(body_of(frame), text.data(), text.size());
  stage({.kind = wire::Kind::kHello}, std::move(frame));
}

void Sender::build_plain(wire::Kind kind) { stage({.kind = kind}, net::Message(wire::kHeadSize)); }

void Sender::build_item(Outgoing item) {
  const wire::Head head{.kind = item.kind, .route = item.route, .flags = item.flags, .epoch = item.epoch,
                        .tag = item.tag, .total = item.total};
  stage(head, std::move(item.frame));
  pending_->item = std::move(item);
}

bool Sender::build_chunk() {
  memory::Chunk chunk = pool_.try_acquire();
  if (!chunk) return false;
  const std::uint64_t left = current_->item.total - current_->offset;
  const std::size_t size = std::min<std::uint64_t>(left, options_.chunk_bytes);
  add(stats_.copies_out, current_->reader.copy_next(chunk.bytes() + wire::kHeadSize, size));
  const auto [pool, bytes] = chunk.release();
  const wire::Head head{.kind = wire::Kind::kChunk, .epoch = current_->item.epoch, .tag = current_->item.tag,
                        .offset = current_->offset, .total = current_->item.total};
  stage(head, net::Message(bytes, wire::kHeadSize + size, release_chunk, pool));
  if (size == left) {
    current_->item.ticket->mark_copied();
    current_->item.deadline = Deadline::never();
    budget_.release(std::exchange(current_->item.held_bytes, 0), 0);
  }
  return true;
}

void Sender::stage(const wire::Head& head, net::Message frame) {
  Pending& next = pending_.emplace();
  next.head = head;
  next.head.session = session_;
  next.head.sequence = sequence_;
  next.head.body_size = static_cast<std::uint32_t>(body_size(frame));
  next.frame = std::move(frame);
  wire::write_head(next.head, next.frame.bytes());
}

void Sender::on_sent() {
  Pending sent = std::move(*pending_);
  pending_.reset();
  ++sequence_;
  if (options_.heartbeat_s > 0) next_beat_ = Deadline::after(options_.heartbeat_s);
  add(stats_.messages_sent);
  add(stats_.bytes_sent, wire::kHeadSize + sent.head.body_size);
  switch (sent.head.kind) {
    case wire::Kind::kHello: hello_sent_ = true; return;
    case wire::Kind::kBye: bye_sent_ = true; return;
    case wire::Kind::kBeat: return;
    case wire::Kind::kCancel: add(stats_.cancelled); return;
    case wire::Kind::kControl:
      add(stats_.control_sent);
      if (sent.item->relayed) add(stats_.relayed);
      budget_.release(sent.item->held_bytes, 1);
      return;
    case wire::Kind::kDict:
      if (!sent.item->payload.empty()) {
        current_.emplace(std::move(*sent.item));
        return;
      }
      add(stats_.dicts_sent);
      sent.item->ticket->mark_sent();
      budget_.release(sent.item->held_bytes, 1);
      return;
    case wire::Kind::kChunk:
      add(stats_.chunks_sent);
      current_->offset += sent.head.body_size;
      if (current_->offset < current_->item.total) return;
      add(stats_.dicts_sent);
      current_->item.ticket->mark_sent();
      budget_.release(0, 1);
      current_.reset();
      return;
  }
}

void Sender::wait(Progress progress) {
  if (progress == Progress::kMore) return;
  Deadline until = Deadline::never();
  {
    const std::lock_guard lock(mutex_);
    until = soonest_;
    if (closing_) until = until.sooner(linger_);
  }
  if (current_) until = until.sooner(current_->item.deadline);
  if (pending_ && pending_->item) until = until.sooner(pending_->item->deadline);
  if (progress == Progress::kIdle && watch_.connected()) until = until.sooner(next_beat_);
  net::PollItem items[3] = {{nullptr, wake_.fd(), net::kPollIn, 0},
                            {watch_.raw(), 0, net::kPollIn, 0},
                            {socket_.raw(), 0, net::kPollOut, 0}};
  net::poll(items, progress == Progress::kBlocked ? 3 : 2, until.remaining_ms());
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
  if (current_) {
    current_->item.ticket->fail(reason);
    budget_.release(current_->item.held_bytes, 1);
  }
  if (pending_ && pending_->item) left.push_back(std::move(*pending_->item));
  for (Outgoing& item : left) {
    if (item.ticket) item.ticket->fail(reason);
    budget_.release(item.held_bytes, 1);
  }
  left.clear();
  pending_.reset();
  current_.reset();
  watch_.close();
  file_->remove();  // before the socket closes, so that no successor can be there yet
  socket_.close();
}

}  // namespace zmqpp::engine
