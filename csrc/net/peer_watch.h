// Tells when the one peer of a socket arrived and when it went, from libzmq's socket monitor.
//
// A connection counts once its ZMTP handshake succeeded: probes, scanners and HTTP clients come and go unnoticed.
// The monitor does not say which connection a handshake belongs to, so accepted descriptors are followed; the
// socket must have one I/O thread (affinity), which makes a failed handshake and its disconnect adjacent events, but
// for one that the gate refused: its disconnect comes later.
//
// A bound socket has a gate, which lets one peer in at a time; it hears from here what became of that one.
//
// Owns: the monitor's PAIR socket. Close it before the watched socket.
// Blocks? never. Thread: the one of the watched socket. Errors: kResource when opening.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "net/gate.h"
#include "net/socket.h"

namespace zmqpp::net {

class PeerWatch {
 public:
  PeerWatch(Context& context, Socket& watched, Gate& gate);    // of a socket that will be bound
  PeerWatch(Context& context, Socket& watched, bool has_keys);  // of one that will be connected
  ~PeerWatch() { close(); }
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  void read_events();  // takes in everything the monitor has to say
  void admit_next();   // the lost peer is forgotten, the next one may come in

  bool connected() const { return connected_; }
  bool lost() const { return lost_; }          // was connected, and no longer is; stays so
  bool crowded() const { return crowded_; }    // a second peer completed a handshake
  bool stalled() const { return stalled_; }    // a connecting socket was refused, and libzmq does not try again
  bool take_turned_away() { return std::exchange(turned_away_, false); }  // the latest attempt ended over a key
  bool is_unanswered(double for_s) const;      // the peer's host is gone or cut off, see net/connection
  bool peer_is_local() const;                  // by its address; false as well when that cannot be told
  std::string last_refusal() const;  // why the latest attempt failed, or empty
  const std::string& key_trouble() const { return key_trouble_; }    // what is wrong with whom we connect to, or empty
  void* raw() const { return pair_.raw(); }
  void close() noexcept;

 private:
  PeerWatch(Context& context, Socket& watched, Gate* gate, bool has_keys);
  void on_event(int event, int value);
  void on_protocol_failure(int reason);
  void on_broken_handshake();
  void on_handshake();
  void on_disconnected(int fd);
  void judge_suspect();
  void judge_grant(const Gate::Grant& grant);

  Socket& watched_;
  Gate* const gate_;  // null: a connecting socket
  const bool has_keys_;
  Socket pair_;
  std::map<int, std::string> open_;  // accepted or connected descriptors whose outcome is not known to be a failure
  std::map<int, std::string> candidates_;  // those of them that may be the peer's, with their connection_name
  bool handshake_failed_ = false;  // the next disconnect belongs to that failure
  bool suspect_ = false;      // a candidate left, and it may or may not have been the peer
  bool connected_ = false;
  bool lost_ = false;
  bool crowded_ = false;
  bool stalled_ = false;
  bool turned_away_ = false;
  int broken_handshakes_ = 0;  // in a row
  std::string refused_for_;    // why the connection that disconnects next was
  std::string last_refusal_;
  std::string key_trouble_;
};

}  // namespace zmqpp::net
