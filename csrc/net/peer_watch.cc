#include "net/peer_watch.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

namespace zmqpp::net {
namespace {

constexpr int kWatchedEvents = kConnected | kConnectRetried | kAccepted | kDisconnected | kHandshakeFailedNoDetail |
                               kHandshakeSucceeded | kHandshakeFailedProtocol | kHandshakeFailedAuth;

constexpr const char* kStranger = "what answers there does not speak ZeroMQ's protocol";

std::string host_of(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof text);
  } else if (address.ss_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text, sizeof text);
  }
  return text;
}

// Contexts are separate per link, but the name must be unique within one.
std::string next_name() {
  static std::atomic<unsigned> count{0};
  return "inproc://zmqpp-monitor-" + std::to_string(count++);
}

}  // namespace

PeerWatch::PeerWatch(Context& context, Socket& watched) : watched_(watched), pair_(context, kPair) {
  const std::string name = next_name();
  if (zmq().socket_monitor(watched.raw(), name.c_str(), kWatchedEvents) != 0) {
    throw Error(Code::kResource, "open", "no socket monitor: " + zmq_error_text());
  }
  pair_.set(kLinger, 0);
  pair_.connect(name);
}

void PeerWatch::read_events() {
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
      open_.insert(value);
      stalled_ = false;
      return;
    case kHandshakeSucceeded: return on_handshake();
    case kDisconnected: return on_disconnected(value);
    case kConnectRetried:
      if (last_refusal_.empty()) last_refusal_ = "nobody answers there";
      stalled_ = false;
      return;
    case kHandshakeFailedNoDetail: last_refusal_ = "the handshake broke off"; break;
    case kHandshakeFailedProtocol: last_refusal_ = kStranger; break;
    case kHandshakeFailedAuth: last_refusal_ = "authentication was refused"; break;
    default: return;
  }
  handshake_failed_ = true;
}

void PeerWatch::on_handshake() {
  if (connected_) {
    crowded_ = true;
    return;
  }
  connected_ = true;
  candidates_ = open_;
}

void PeerWatch::on_disconnected(int fd) {
  open_.erase(fd);
  if (!connected_) {
    stalled_ = true;
    if (!handshake_failed_) last_refusal_ = kStranger;
  }
  const bool was_candidate = candidates_.erase(fd) > 0;
  if (handshake_failed_) {
    handshake_failed_ = false;
    return;
  }
  if (!connected_ || !was_candidate) return;
  if (candidates_.empty()) {
    lost_ = true;
  } else {
    suspect_ = true;
  }
}

// Both ends of a connection that stays on this host have the same address, or no address at all. The descriptor is
// libzmq's and may be closed at any moment: then the answer is of no use to anybody either.
bool PeerWatch::peer_is_local() const {
  return std::any_of(candidates_.begin(), candidates_.end(), [](int fd) {
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
