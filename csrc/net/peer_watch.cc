#include "net/peer_watch.h"

#include <atomic>
#include <cstdint>
#include <cstring>

namespace zmqpp::net {
namespace {

constexpr int kWatchedEvents = kConnected | kConnectRetried | kAccepted | kDisconnected | kHandshakeFailedNoDetail |
                               kHandshakeSucceeded | kHandshakeFailedProtocol | kHandshakeFailedAuth;

constexpr const char* kStranger = "what answers there does not speak ZeroMQ's protocol";

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

// libzmq rejects a peer that is not ZMTP 3 without a failure event. If that one was accepted before the real peer's
// handshake, its disconnect looks like the peer's. A socket that can still be written to has its peer.
void PeerWatch::judge_suspect() {
  if (lost_ || watched_.writable()) suspect_ = false;
}

}  // namespace zmqpp::net
