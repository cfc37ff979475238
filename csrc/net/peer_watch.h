// Tells when the one peer of a socket arrived and when it went, from libzmq's socket monitor.
//
// A connection counts once its ZMTP handshake succeeded: probes, scanners and HTTP clients come and go unnoticed.
// The monitor does not say which connection a handshake belongs to, so accepted descriptors are followed; the
// socket must have one I/O thread (affinity), which makes a failed handshake and its disconnect adjacent events.
//
// Owns: the monitor's PAIR socket. Close it before the watched socket.
// Blocks? never. Thread: the one of the watched socket. Errors: kResource when opening.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "net/socket.h"

namespace zmqpp::net {

class PeerWatch {
 public:
  PeerWatch(Context& context, Socket& watched);
  ~PeerWatch() { close(); }
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  void read_events();  // takes in everything the monitor has to say

  bool connected() const { return connected_; }
  bool lost() const { return lost_; }          // was connected, and no longer is; stays so
  bool crowded() const { return crowded_; }    // a second peer completed a handshake
  bool stalled() const { return stalled_; }    // a connecting socket was refused, and libzmq does not try again
  bool peer_is_local() const;                  // by its address; false as well when that cannot be told
  const std::string& last_refusal() const { return last_refusal_; }  // why the latest attempt failed, or empty
  void* raw() const { return pair_.raw(); }
  void close() noexcept;

 private:
  void on_event(int event, int value);
  void on_handshake();
  void on_disconnected(int fd);
  void judge_suspect();

  Socket& watched_;
  Socket pair_;
  std::set<int> open_;        // accepted or connected descriptors whose outcome is not known to be a failure
  std::set<int> candidates_;  // those of them that may be the peer's
  bool handshake_failed_ = false;  // the next disconnect belongs to that failure
  bool suspect_ = false;      // a candidate left, and it may or may not have been the peer
  bool connected_ = false;
  bool lost_ = false;
  bool crowded_ = false;
  bool stalled_ = false;
  std::string last_refusal_;
};

}  // namespace zmqpp::net
