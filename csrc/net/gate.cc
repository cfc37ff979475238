#include "net/gate.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "base/thread.h"

namespace zmqpp::net {
namespace {

constexpr char kZapAddress[] = "inproc://zeromq.zap.01";
constexpr char kZapVersion[] = "1.0";
constexpr double kPatience_s = 0.3;   // until the end of a peer that has just died is known
constexpr double kMargin_s = 0.5;     // libzmq's own timer comes first
constexpr std::size_t kMaxWaiting = 16;
constexpr std::size_t kMaxRequests = 64;  // a turn

enum Frame { kRouting, kDelimiter, kVersion, kId, kDomain, kAddress, kIdentity, kMechanism, kCredential };

std::optional<RawKey> key_of(const KeyPair& keys) {
  return keys.is_given() ? std::optional(raw_key(keys.public_key)) : std::nullopt;
}

std::string text_of(Message& frame) { return {reinterpret_cast<const char*>(frame.bytes()), frame.size()}; }

Message message_of(const std::string& text) {
  Message frame(text.size());
  if (!text.empty()) std::memcpy(frame.bytes(), text.data(), text.size());
  return frame;
}

// libzmq writes a Unix socket's peer as "NAME:UID:GID:PID".
std::string named(const std::string& address) {
  const bool is_local = std::count(address.begin(), address.end(), ':') == 3 && address.find('.') == std::string::npos &&
                        address.find("::") == std::string::npos;
  if (!is_local) return address.empty() ? kUnknown : address;
  return "pid " + address.substr(address.rfind(':') + 1);
}

}  // namespace

Gate::Gate(Context& context, const KeyPair& keys, double handshake_s, Event& granted, Refusals& refusals)
    : key_(key_of(keys)), handshake_s_(handshake_s), granted_(granted), refusals_(refusals), socket_(context, kRouter) {
  socket_.set(kLinger, 0);
  socket_.bind(kZapAddress);
  thread_ = start_thread("zmqpp-gate", [this] { run(); });
}

std::optional<Gate::Grant> Gate::grant() const {
  const std::lock_guard lock(mutex_);
  return place_ == Place::kGranted ? std::optional(grant_) : std::nullopt;
}

void Gate::take() {
  const std::lock_guard lock(mutex_);
  place_ = Place::kTaken;
  wake_.signal();  // who waits beyond its patience is refused
}

void Gate::revoke(std::uint64_t grant) {
  const std::lock_guard lock(mutex_);
  if (place_ == Place::kGranted && grant_.number == grant) set_free(lock);
}

void Gate::free() {
  const std::lock_guard lock(mutex_);
  set_free(lock);
}

void Gate::set_free(const std::lock_guard<std::mutex>&) {
  place_ = Place::kFree;
  wake_.signal();
}

void Gate::close() noexcept {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.signal();
  if (thread_.joinable()) thread_.join();
  wake_.close();  // signals from now on go nowhere
}

// ---- gate thread ------------------------------------------------------------------------------------------------

void Gate::run() noexcept {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (closing_) break;
    }
    try {
      turn();
    } catch (const std::exception&) {
      waiting_.clear();  // without memory or descriptors: who waits for an answer is dropped by libzmq's timer
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  waiting_.clear();
  socket_.close();
}

void Gate::turn() {
  PollItem items[2] = {{nullptr, wake_.fd(), kPollIn, 0}, {socket_.raw(), 0, kPollIn, 0}};
  poll(items, 2, next_judgement().remaining_ms());
  wake_.drain();
  judge_waiting();  // first come, first served
  for (std::size_t i = 0; i < kMaxRequests; ++i) {
    Request request;
    if (!read_request(request)) return;
    if (!request.id.empty()) judge(std::move(request));
  }
}

// False: there is none. One that is not as RFC 27 has it comes back without an id.
bool Gate::read_request(Request& request) {
  Message frame;
  if (!socket_.try_receive(frame)) return false;
  std::vector<Message> frames;
  frames.push_back(std::move(frame));
  while (frames.back().more()) {
    Message next;
    if (!socket_.try_receive(next)) return true;
    frames.push_back(std::move(next));
  }
  if (frames.size() < kCredential || text_of(frames[kVersion]) != kZapVersion) return true;
  request.id = text_of(frames[kId]);
  request.domain = text_of(frames[kDomain]);
  request.address = named(text_of(frames[kAddress]));
  request.mechanism = text_of(frames[kMechanism]);
  if (frames.size() > kCredential) request.key = text_of(frames[kCredential]);
  request.routing = std::move(frames[kRouting]);
  return true;
}

void Gate::judge(Request request) {
  if (request.domain == kConnectDomain) return reply(request, true);
  if (!is_of_the_pipeline(request)) return refuse(request, "wrong key");
  if (waiting_.empty() && try_grant()) return reply(request, true);
  if (waiting_.size() >= kMaxWaiting) return refuse(request, "a crowd at the door");
  request.patience = Deadline::after(kPatience_s);
  request.limit = Deadline::after(handshake_s_);
  waiting_.push_back(std::move(request));
}

bool Gate::is_of_the_pipeline(const Request& request) const {
  if (!key_) return request.mechanism == "NULL";
  return request.mechanism == "CURVE" && request.key.size() == key_->size() &&
         std::memcmp(request.key.data(), key_->data(), key_->size()) == 0;
}

bool Gate::try_grant() {
  {
    const std::lock_guard lock(mutex_);
    if (place_ != Place::kFree) return false;
    place_ = Place::kGranted;
    grant_ = {grant_.number + 1, Deadline::after(handshake_s_ + kMargin_s)};
  }
  granted_.signal();
  return true;
}

void Gate::judge_waiting() {
  while (!waiting_.empty() && try_grant()) {
    reply(waiting_.front(), true);
    waiting_.pop_front();
  }
  const bool granted = grant().has_value();
  const auto is_over = [&](const Request& request) {
    return request.limit.expired() || (!granted && request.patience.expired());
  };
  for (auto request = waiting_.begin(); request != waiting_.end();) {
    if (!is_over(*request)) {
      ++request;
      continue;
    }
    refuse(*request, "this link has its receiver already");
    request = waiting_.erase(request);
  }
}

Deadline Gate::next_judgement() const {
  Deadline soonest = Deadline::never();
  for (const Request& request : waiting_) {
    soonest = soonest.sooner(request.limit);
    // Beyond its patience it waits for a signal, or for its limit.
    if (!request.patience.expired()) soonest = soonest.sooner(request.patience);
  }
  return soonest;
}

void Gate::refuse(Request& request, const std::string& reason) {
  note_refused(request.address, reason);
  reply(request, false);
}

// A reply to a connection that is gone is dropped by ZeroMQ.
void Gate::reply(Request& request, bool welcome) {
  const std::string frames[] = {"", kZapVersion, request.id, welcome ? "200" : "400", welcome ? "OK" : "refused", "", ""};
  if (!socket_.try_send(request.routing, true)) return;
  for (const std::string& text : frames) {
    Message frame = message_of(text);
    if (!socket_.try_send(frame, &text != &frames[6])) return;
  }
}

}  // namespace zmqpp::net
