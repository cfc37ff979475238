#include "net/peer_watch.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <utility>

#include "net/connection.h"

namespace zmqpp::net {
namespace {

constexpr int kWatchedEvents = kConnected | kConnectRetried | kAccepted | kDisconnected | kHandshakeFailedNoDetail |
                               kHandshakeSucceeded | kHandshakeFailedProtocol | kHandshakeFailedAuth;

constexpr const char* kStranger = "what answers there does not speak ZeroMQ's protocol";
constexpr const char* kOtherKey = "has another key, or none";
constexpr const char* kWantsKey = "asks for a key, and there is none here";
constexpr const char* kNoKey = "it showed no key";
constexpr int kManyBroken = 3;  // a process that dies breaks off one handshake, a wrong key every one

std::string host_of(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof text);
  } else if (address.ss_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text, sizeof text);
  }
  return text;
}

// Who is at the other end of a descriptor that was accepted a moment ago, and may be closed again.
std::string name_of(int fd) {
  sockaddr_storage there{};
  socklen_t size = sizeof there;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&there), &size) != 0) return kUnknown;
  if (there.ss_family != AF_UNIX) return host_of(there);
  ucred who{};
  size = sizeof who;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return kUnknown;
  return "pid " + std::to_string(who.pid);
}

// An attempt that we have ended ourselves leaves without an event.
bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

// Contexts are separate per link, but the name must be unique within one.
std::string next_name() {
  static std::atomic<unsigned> count{0};
  return "inproc://zmqpp-monitor-" + std::to_string(count++);
}

}  // namespace

PeerWatch::PeerWatch(Context& context, Socket& watched, Gate& gate)
    : PeerWatch(context, watched, &gate, gate.wants_key()) {}

PeerWatch::PeerWatch(Context& context, Socket& watched, bool has_keys) : PeerWatch(context, watched, nullptr, has_keys) {}

PeerWatch::PeerWatch(Context& context, Socket& watched, Gate* gate, bool has_keys)
    : watched_(watched), gate_(gate), has_keys_(has_keys), pair_(context, kPair) {
  const std::string name = next_name();
  if (zmq().socket_monitor(watched.raw(), name.c_str(), kWatchedEvents) != 0) {
    throw Error(Code::kResource, "open", "no socket monitor: " + zmq_error_text());
  }
  pair_.set(kLinger, 0);
  pair_.connect(name);
}

void PeerWatch::read_events() {
  // First the grant, then the events: those of the connection that it was given to are then among them.
  const std::optional<Gate::Grant> grant = gate_ != nullptr ? gate_->grant() : std::nullopt;
  Message frame;
  while (pair_.try_receive(frame)) {
    // First frame: u16 event, u32 value; second: the endpoint, which says nothing we do not know.
    std::uint16_t event = 0;
    std::uint32_t value = 0;
    if (frame.size() >= sizeof event + sizeof value) {
      std::memcpy(&event, frame.bytes(), sizeof event);
      std::memcpy(&value, frame.bytes() + sizeof event, sizeof value);
    }
    while (frame.more() && pair_.try_receive(frame)) {
    }
    on_event(event, static_cast<int>(value));
  }
  if (suspect_) judge_suspect();
  if (grant) judge_grant(*grant);
}

void PeerWatch::admit_next() {
  candidates_.clear();
  connected_ = lost_ = suspect_ = crowded_ = false;
  if (gate_ != nullptr) gate_->free();
}

std::string PeerWatch::last_refusal() const { return key_trouble_.empty() ? last_refusal_ : "it " + key_trouble_; }

// Who was let in has left before its handshake was done, when nobody is left who could be it.
void PeerWatch::judge_grant(const Gate::Grant& grant) {
  if (!connected_ && (open_.empty() || grant.until.expired())) gate_->revoke(grant.number);
}

// The monitor first: with its reader gone it would block libzmq's thread on the next event.
void PeerWatch::close() noexcept {
  if (pair_.raw() == nullptr) return;
  zmq().socket_monitor(watched_.raw(), nullptr, 0);
  pair_.close();
}

void PeerWatch::on_event(int event, int value) {
  switch (event) {
    case kAccepted:
    case kConnected:
      open_[value] = gate_ != nullptr ? name_of(value) : "";
      stalled_ = turned_away_ = false;
      return;
    case kHandshakeSucceeded: return on_handshake();
    case kDisconnected: return on_disconnected(value);
    case kConnectRetried:
      if (last_refusal_.empty()) last_refusal_ = "nobody answers there";
      stalled_ = false;
      return;
    case kHandshakeFailedNoDetail: on_broken_handshake(); break;
    case kHandshakeFailedProtocol: on_protocol_failure(value); break;
    case kHandshakeFailedAuth:
      if (gate_ != nullptr) return;  // it knows; and the connection lives until it has heard of it
      last_refusal_ = "it has its receiver already";
      break;
    default: return;
  }
  handshake_failed_ = true;
}

void PeerWatch::on_protocol_failure(int reason) {
  const bool mismatch = reason == kProtocolMechanismMismatch;
  if (gate_ != nullptr) {
    refused_for_ = !mismatch   ? (reason == kProtocolCryptographic ? "wrong key" : "not a receiver of this pipeline")
                   : has_keys_ ? kNoKey
                               : "it has a key, and there is none here";
    return;
  }
  last_refusal_ = kStranger;
  if (has_keys_ || mismatch) key_trouble_ = has_keys_ ? kOtherKey : kWantsKey;
}

// A sender that cannot read what was encrypted for another key hangs up without a word; so does a receiver without
// keys, before it has said that it has none.
void PeerWatch::on_broken_handshake() {
  last_refusal_ = "the handshake broke off";
  if (!has_keys_) return;
  if (gate_ != nullptr) {
    refused_for_ = kNoKey;
  } else if (++broken_handshakes_ >= kManyBroken) {
    key_trouble_ = kOtherKey;
  }
}

void PeerWatch::on_handshake() {
  broken_handshakes_ = 0;
  key_trouble_.clear();
  if (connected_) {
    crowded_ = true;
    return;
  }
  connected_ = true;
  for (const auto& [fd, name] : open_) candidates_.emplace(fd, connection_name(fd));
  if (gate_ != nullptr) gate_->take();
}

void PeerWatch::on_disconnected(int fd) {
  if (!refused_for_.empty()) {
    const auto found = open_.find(fd);
    gate_->note_refused(found == open_.end() ? kUnknown : found->second, std::exchange(refused_for_, {}));
  }
  open_.erase(fd);
  if (!connected_) {
    stalled_ = true;
    turned_away_ = !key_trouble_.empty();
    if (!handshake_failed_) last_refusal_ = kStranger;
  }
  const bool was_candidate = candidates_.erase(fd) > 0;
  if (handshake_failed_) {
    handshake_failed_ = false;
    return;
  }
  if (!connected_ || !was_candidate) return;
  std::erase_if(candidates_, [](const auto& candidate) { return !is_open(candidate.first); });
  if (candidates_.empty()) {
    lost_ = true;
  } else {
    suspect_ = true;
  }
}

bool PeerWatch::is_unanswered(double for_s) const {
  return !candidates_.empty() && std::all_of(candidates_.begin(), candidates_.end(), [&](const auto& candidate) {
    return net::is_unanswered(candidate.first, candidate.second, for_s);
  });
}

// Both ends of a connection that stays on this host have the same address, or no address at all. The descriptor is
// libzmq's and may be closed at any moment: then the answer is of no use to anybody either.
bool PeerWatch::peer_is_local() const {
  return std::any_of(candidates_.begin(), candidates_.end(), [](const auto& candidate) {
    const int fd = candidate.first;
    sockaddr_storage here{}, there{};
    socklen_t here_size = sizeof here, there_size = sizeof there;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&here), &here_size) != 0) return false;
    if (here.ss_family == AF_UNIX) return true;
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&there), &there_size) != 0) return false;
    return host_of(here) == host_of(there);
  });
}

// libzmq rejects a peer that is not ZMTP 3 without a failure event. If that one was accepted before the real peer's
// handshake, its disconnect looks like the peer's. A socket that can still be written to has its peer.
void PeerWatch::judge_suspect() {
  if (lost_ || watched_.writable()) suspect_ = false;
}

}  // namespace zmqpp::net
