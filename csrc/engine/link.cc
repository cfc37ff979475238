#include "engine/link.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/align.h"
#include "base/clock.h"
#include "base/duration.h"
#include "base/process.h"
#include "engine/arrival.h"
#include "engine/frame.h"
#include "engine/retired_rings.h"
#include "wire/manifest.h"

namespace zmqpp::engine {
namespace {

constexpr std::size_t kFrameManifest = 4096;  // room for a manifest beside the inline payload
constexpr std::size_t kFrames = 64;           // beyond, they come from the heap
constexpr std::size_t kMostPinnedChunks = 65536;
constexpr std::chrono::milliseconds kRebind{2};
constexpr double kLastReads_s = 0.5;  // of devices, from what this link received

// One for each direction, where the machine has processors for them.
int io_threads() { return std::thread::hardware_concurrency() > 2 ? 2 : 1; }

Span manifest_of(const std::vector<Span>& body) { return body.front(); }

std::size_t pinned_chunks(const Options& options) {
  return std::min(options.pinned_pool_bytes / options.chunk_bytes, kMostPinnedChunks);
}

}  // namespace

// The sending half of the moment, for the receiver thread.
struct Link::Next : public Onward {
  explicit Next(const Link& link) : link_(link) {}

  std::optional<Error> relay(Outgoing item) override {
    const std::shared_ptr<Sender> half = link_.sender();  // all the way: another one may take its place meanwhile
    if (half->relay(std::move(item))) return std::nullopt;
    const Error full(Code::kResource, "relay",
                     std::to_string(kMaxRelays) + " control messages wait to be passed on to " + link_.options_.next +
                         ", which takes none");
    half->fail(full);
    return full;
  }
  bool try_control(const ControlMark& mark, const std::uint8_t* body, std::size_t size) override {
    try {
      return link_.sender()->try_control(mark, body, size);
    } catch (const Error&) {
      return false;  // that half has failed, and relay finds it so
    }
  }

 private:
  const Link& link_;
};

// The receiving half with what only it uses; the inbox lives as long as somebody waits in it.
struct Link::Receiving {
  Receiving(Link& link, std::uint32_t epoch)
      : inbox(link.options_, wake, link.notice_, link.stats_, epoch),
        receiver(*link.context_, link.options_, inbox, wake, link.next_.get(), link.frame_pool_.get(), link.budget_,
                 link.shared_stats_) {}

  Event wake;
  Inbox inbox;
  Receiver receiver;
};

Link::Link(Options options)
    : options_(std::move(options)),
      owner_(current_pid()),
      budget_(options_.queue_bytes, options_.queue_items),
      context_(std::make_unique<net::Context>(io_threads())) {
  if (options_.device >= 0) device::Device::of(options_.device);  // takes a second: before anybody waits for an answer
  if (!options_.bind.empty()) {
    const std::size_t frame_bytes = kFrameFront + wire::kHeadSize + kFrameManifest + options_.inline_bytes;
    pool_ = std::make_unique<memory::Pool>(wire::kHeadSize + options_.chunk_bytes, options_.pool_chunks, sender_wake_,
                                           pinned_chunks(options_));
    if (options_.device >= 0) pin_pool(device::Device::of(options_.device));
    frame_pool_ = std::make_unique<memory::Pool>(align_up(frame_bytes), kFrames, frame_freed_);
    next_ = std::make_unique<Next>(*this);
    sender_ = make_sender();
    options_.bind = sender_->bound();
  }
  if (!options_.connect.empty()) receiving_ = make_receiving();
}

// Where the lane was chosen, and it is not the socket, nothing goes through the pool.
void Link::pin_pool(device::Device& device) {
  if (!must_share(options_.lane)) pool_->pin(device);
}

std::shared_ptr<Sender> Link::make_sender() {
  return std::make_shared<Sender>(*context_, options_, budget_, sender_wake_, *pool_, stats_, refusals_);
}

std::shared_ptr<Link::Receiving> Link::make_receiving() { return std::make_shared<Receiving>(*this, epoch_); }

Link::~Link() {
  close(0);
}

// After a fork the threads are not here: what they used can neither be joined nor destroyed.
std::shared_ptr<Link> open_link(Options options) {
  if (options.relay != Relay::kNone && (options.bind.empty() || options.connect.empty())) {
    throw Error(Code::kConfig, "open", "a relay needs both `bind` and `connect`");
  }
  const pid_t owner = current_pid();
  return std::shared_ptr<Link>(new Link(std::move(options)), [owner](Link* link) {
    if (current_pid() == owner) delete link;
  });
}

std::shared_ptr<Sender> Link::sender() const {
  const std::lock_guard lock(halves_);
  return sender_;
}

std::shared_ptr<Link::Receiving> Link::receiving() const {
  const std::lock_guard lock(halves_);
  return receiving_;
}

std::string Link::bound() const { return options_.bind; }

void Link::reopen_send(const Deadline& deadline) {
  check_usable();
  const std::lock_guard lock(closing_);
  const std::shared_ptr<Sender> old = sending_half();
  if (closed_) throw Error(Code::kClosed, "reopen", "this link was closed");
  old->close(Deadline::after(0));
  budget_.revive();
  while (true) {
    try {
      std::shared_ptr<Sender> fresh = make_sender();
      const std::lock_guard halves(halves_);
      sender_ = std::move(fresh);
      return;
    } catch (const Error& error) {
      // libzmq lets go of the port on a thread of its own.
      if (error.code() != Code::kAddressInUse || deadline.expired()) throw;
      std::this_thread::sleep_for(kRebind);
    }
  }
}

void Link::reopen_receive() {
  inbox();  // there is such a half, and it is ours
  const std::lock_guard lock(closing_);
  if (closed_) throw Error(Code::kClosed, "reopen", "this link was closed");
  const std::shared_ptr<Receiving> old = receiving();
  old->inbox.fail(Error(Code::kPeerLost, "receive", "this half of the link was opened anew meanwhile"));
  old->receiver.close();
  old->inbox.detach();
  sweep_arrivals();
  std::shared_ptr<Receiving> fresh = make_receiving();
  const std::lock_guard halves(halves_);
  receiving_ = std::move(fresh);
}

void Link::use_device(device::Ordinal ordinal) {
  check_usable();
  const std::lock_guard lock(closing_);
  if (closed_) throw Error(Code::kClosed, "open", "this link was closed");
  device::Device& device = device::Device::of(ordinal);
  options_.device = ordinal;  // for halves that are opened anew
  if (pool_) pin_pool(device);
  if (const std::shared_ptr<Sender> half = sender()) half->use_device(device);
  if (const std::shared_ptr<Receiving> half = receiving()) half->receiver.use_device(ordinal);
}

bool Link::reserve(std::size_t bytes, const Deadline& slice) {
  check_usable();
  sending_half();
  return budget_.acquire(bytes, slice);
}

bool Link::try_send_control(const std::uint8_t* body, std::size_t size, const SendOptions& send) {
  check_usable();
  return sending_half()->try_control({.route = send.route, .tag = send.tag, .epoch = epoch_}, body, size);
}

void Link::send_control(const std::uint8_t* body, std::size_t size, const SendOptions& send) {
  BudgetedFrame copy = make_frame(size, budget_, *frame_pool_, stats_);
  std::memcpy(body_of(copy.frame), body, size);
  Outgoing item;
  item.route = send.route;
  item.tag = send.tag;
  item.epoch = epoch_;
  item.frame = std::move(copy.frame);
  item.held_bytes = copy.held_bytes;
  item.deadline = send.deadline;
  sending_half()->push(std::move(item));
}

std::size_t Link::reservation(const std::vector<Span>& body) const {
  const std::size_t front = wire::kManifestPrefix + manifest_of(body).size;
  const std::uint64_t total = payload_size(body) - align_up(manifest_of(body).size);
  return is_inline(total) && !is_on_device(body) ? align_up(front) + total : front + total;
}

bool Link::try_send_dict(const std::vector<Span>& body, std::uint64_t tag) {
  check_usable();
  const std::shared_ptr<Sender> sender = sending_half();
  const std::uint64_t manifest = manifest_of(body).size;
  const std::uint64_t total = payload_size(body) - align_up(manifest);
  check_sizes(manifest, total);
  const std::uint64_t start = now_ns();
  const DictMark mark{.total = total, .tag = tag, .epoch = epoch_, .manifest_size = static_cast<std::uint32_t>(manifest)};
  if (!sender->try_shared(body, mark)) return false;
  stats_.send_ns.add(now_ns() - start);
  return true;
}

SendTicketPtr Link::send_dict(const std::vector<Span>& body, const SendOptions& send) {
  const Span manifest = manifest_of(body);
  const std::uint64_t total = payload_size(body) - align_up(manifest.size);
  const bool inline_payload = is_inline(total) && !is_on_device(body);
  const auto manifest_size = static_cast<std::uint32_t>(manifest.size);
  const std::size_t front = wire::kManifestPrefix + manifest.size;
  const std::size_t size = inline_payload ? align_up(front) + total : front;
  BudgetedFrame message = make_frame(size, budget_, *frame_pool_, stats_);
  std::uint8_t* out = body_of(message.frame);
  std::memcpy(out, &manifest_size, sizeof manifest_size);
  std::memcpy(out + wire::kManifestPrefix, manifest.bytes, manifest.size);
  std::vector<Span> payload(body.begin() + 1, body.end());
  Outgoing item;
  item.kind = wire::Kind::kDict;
  item.tag = send.tag;
  item.epoch = epoch_;
  item.total = total;
  item.flight = send.flight;
  item.ticket = std::make_shared<SendTicket>(notice_, send.flight);
  item.deadline = send.deadline;
  item.held_bytes = message.held_bytes;
  item.accepted_ns = now_ns();
  if (inline_payload) {
    item.flags = wire::kFlagInline;
    std::memset(out + front, 0, align_up(front) - front);
    PayloadReader reader(payload);
    reader.copy_next(out + align_up(front), total, total);
    add(stats_.copies_out, reader.copies());
    item.ticket->mark_copied();
    stats_.send_ns.add(now_ns() - item.accepted_ns);
    item.deadline = Deadline::never();  // the caller was told that it is taken care of
  } else {
    item.held_bytes += total;
    item.payload = std::move(payload);
    item.in_flight = true;
    add(stats_.in_flight);
  }
  item.frame = std::move(message.frame);
  SendTicketPtr ticket = item.ticket;
  sending_half()->push(std::move(item));
  return ticket;
}

std::shared_ptr<Inbox> Link::inbox() {
  if (current_pid() != owner_) check_usable();
  std::shared_ptr<Receiving> half = receiving();
  if (!half) throw Error(Code::kConfig, "receive", "this link was opened without `connect`: it cannot receive");
  Inbox* const inbox = &half->inbox;
  return {std::move(half), inbox};
}

bool Link::wait_send_peer(const Deadline& deadline) {
  check_usable();
  const std::shared_ptr<Sender> half = sender();
  return !half || half->wait_peer(deadline);
}

bool Link::is_receiver_there() const {
  const std::shared_ptr<Sender> half = sender();
  return half && half->peer_connected();
}

bool Link::wait_receive_peer(const Deadline& deadline) {
  check_usable();
  const std::shared_ptr<Receiving> half = receiving();
  return !half || half->receiver.wait_peer(deadline);
}

Error Link::peer_timeout(bool sending, double waited_s) const {
  const std::string within = " within " + seconds_text(waited_s);
  if (sending) {
    return Error(Code::kConnectTimeout, "connect",
                 options_.next + " did not connect to " + bound() + within + "; is it running, with this address?");
  }
  const std::shared_ptr<Receiving> half = receiving();
  const std::string reason = half ? half->receiver.last_refusal() : "";
  return Error(Code::kConnectTimeout, "connect",
               "no greeting from " + options_.previous + " at " + options_.connect + within +
                   (reason.empty() ? "" : " (" + reason + ")") + "; is it running, and is this its address?");
}

Error Link::queue_timeout(double waited_s) const {
  const Error held = budget_.timeout_error(waited_s);
  const bool there = is_receiver_there();
  return Error(held.code(), held.op(), held.detail() + "; " + options_.next +
                                           (there ? " is slower than this side" : " has not connected to " + bound()));
}

std::string Link::receive_trouble() const {
  if (current_pid() != owner_) return "";
  const std::shared_ptr<Receiving> half = receiving();
  if (!half || half->receiver.peer_connected()) return "";
  const std::string reason = half->receiver.last_refusal();
  return "not connected to " + options_.connect + " yet" + (reason.empty() ? "" : ": " + reason);
}

void Link::set_epoch(std::uint32_t epoch) {
  check_usable();
  epoch_ = epoch;
  if (const std::shared_ptr<Receiving> half = receiving()) half->inbox.set_epoch(epoch);
}

std::map<std::string, std::uint64_t> Link::stats() const {
  const bool mine = current_pid() == owner_;  // a fork's locks may be held by threads that are not there
  const std::shared_ptr<Sender> sending = mine ? sender() : nullptr;
  const std::shared_ptr<Receiving> half = mine ? receiving() : nullptr;
  return {
      {"bytes_sent", stats_.bytes_sent},
      {"bytes_received", stats_.bytes_received},
      {"messages_sent", stats_.messages_sent},
      {"messages_received", stats_.messages_received},
      {"dicts_sent", stats_.dicts_sent},
      {"dicts_received", stats_.dicts_received},
      {"control_sent", stats_.control_sent},
      {"control_received", stats_.control_received},
      {"chunks_sent", stats_.chunks_sent},
      {"chunks_received", stats_.chunks_received},
      {"copies_out", stats_.copies_out},
      {"copies_in", stats_.copies_in},
      {"relayed", stats_.relayed},
      {"stale", stats_.stale},
      {"cancelled", stats_.cancelled},
      {"allocations", stats_.allocations},
      {"doorbells", stats_.doorbells},
      {"refused", refusals_.count()},
      {"in_flight", stats_.in_flight},
      {"held_bytes", stats_.held_bytes},
      {"send_wait_ns", stats_.send_wait_ns},
      {"peer_wait_ns", stats_.peer_wait_ns},
      {"send_p50_ns", stats_.send_ns.quantile(0.5)},
      {"send_p99_ns", stats_.send_ns.quantile(0.99)},
      {"receive_p50_ns", stats_.receive_ns.quantile(0.5)},
      {"receive_p99_ns", stats_.receive_ns.quantile(0.99)},
      {"send_lane", sending ? static_cast<std::uint64_t>(sending->lane()) : 0},
      {"receive_lane", half ? static_cast<std::uint64_t>(half->receiver.lane()) : 0},
      {"send_peer_connected", sending && sending->peer_connected()},
      {"receive_peer_connected", half && half->receiver.peer_connected()},
  };
}

std::string Link::lane_reason() const {
  if (current_pid() != owner_) return "";
  const std::shared_ptr<Sender> sending = sender();
  const std::shared_ptr<Receiving> half = receiving();
  const std::string reason = sending ? sending->lane_reason() : "";
  return reason.empty() && half ? half->receiver.lane_reason() : reason;
}

std::vector<net::Refusal> Link::take_refusals() {
  if (current_pid() != owner_) return {};
  return refusals_.take();
}

std::string Link::key_trouble() const {
  if (current_pid() != owner_) return "";
  const std::shared_ptr<Receiving> half = receiving();
  return half ? half->receiver.key_trouble() : "";
}

void Link::arm(bool on) {
  check_usable();
  if (const std::shared_ptr<Receiving> half = receiving()) {
    half->inbox.arm(on);
  } else {
    notice_->arm(on);
  }
}

std::optional<Error> Link::send_error() const {
  const std::shared_ptr<Sender> half = sender();
  return half ? half->error() : std::nullopt;
}

std::optional<Error> Link::receive_error() const {
  const std::shared_ptr<Receiving> half = receiving();
  return half ? half->inbox.error() : std::nullopt;
}

void Link::close(double linger_s) {
  if (current_pid() != owner_) return;
  const std::lock_guard lock(closing_);
  if (closed_.exchange(true)) return;
  // The sending half first: its goodbye travels while the receiving half is still there for a ring of two.
  const std::shared_ptr<Sender> sending = sender();
  if (sending) sending->leave(Deadline::after(linger_s));
  if (const std::shared_ptr<Receiving> half = receiving()) {
    half->receiver.close();
    half->inbox.detach();
    half->wake.close();
  }
  if (sending) sending->close(Deadline::after(0));  // what devices still copy keeps nobody else
  context_.reset();  // afterwards no callback into pool or budget can come
  await_arrivals(Deadline::after(kLastReads_s));  // what a device reads for longer is freed by a later sweep
  sweep_arrivals();
  sweep_rings();
  sender_wake_.close();
  frame_freed_.close();
  notice_->close();
}

void Link::check_usable() const {
  if (current_pid() != owner_) {
    throw Error(Code::kClosed, "use", "this link belongs to process " + std::to_string(owner_) +
                                          "; a forked child must open its own");
  }
}

void Link::check_sizes(std::uint64_t manifest, std::uint64_t total) const {
  const auto refuse = [](const char* what, std::uint64_t size, std::uint64_t limit) {
    throw Error(Code::kConfig, "send", std::string(what) + " of " + std::to_string(size) +
                                           " bytes, the limit is " + std::to_string(limit));
  };
  if (manifest > wire::kMaxManifestBytes) refuse("manifest", manifest, wire::kMaxManifestBytes);
  if (total > options_.limits.max_dict_bytes) refuse("tensor dict", total, options_.limits.max_dict_bytes);
}

std::shared_ptr<Sender> Link::sending_half() const {
  std::shared_ptr<Sender> half = sender();
  if (!half) throw Error(Code::kConfig, "send", "this link was opened without `bind`: it cannot send");
  return half;
}

}  // namespace zmqpp::engine
