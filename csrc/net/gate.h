// Lets one peer at a time into a bound socket: libzmq asks it about every connection whose handshake gets that far.
//
// With keys only who has proven to own the pipeline's pair may come in. Whoever comes while the place is taken, or is
// given to somebody who has not finished his handshake, waits a moment, for the holder may just have died; then he is
// refused. PeerWatch tells what became of those who were let in.
//
// Owns: the ZAP socket of the context, and its thread.
// Blocks? close, for the thread, whose every wait has a deadline. Thread: public calls from any.
// Errors: kResource when opening; kConfig: a key that is none. Open it before the socket is bound, close it after.
// Source: ZAP, https://rfc.zeromq.org/spec/27/.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/deadline.h"
#include "base/event.h"
#include "net/curve.h"
#include "net/refusals.h"
#include "net/socket.h"

namespace zmqpp::net {

// ZAP domains of our sockets. A domain also makes libzmq refuse peers older than ZMTP 3, for which it takes every stray
// HTTP client.
inline constexpr char kBindDomain[] = "zmqpp";
inline constexpr char kConnectDomain[] = "zmqpp-connect";  // whom we connect to proves itself by CURVE, or not at all

class Gate {
 public:
  // The place was given, and the peer has not finished its handshake.
  struct Grant {
    std::uint64_t number;
    Deadline until;  // by then libzmq has dropped a peer that did not
  };

  // `granted` is signalled after a grant. Both references must outlive the gate.
  Gate(Context& context, const KeyPair& keys, double handshake_s, Event& granted, Refusals& refusals);
  ~Gate() { close(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  bool wants_key() const { return key_.has_value(); }
  std::optional<Grant> grant() const;
  void take();                       // the peer that was let in is there
  void revoke(std::uint64_t grant);  // it never came
  void free();                       // it has gone, and the next one may come

  void note_refused(const std::string& address, const std::string& reason) { refusals_.note(address, reason); }

  void close() noexcept;

 private:
  enum class Place { kFree, kGranted, kTaken };
  struct Request {
    Message routing;
    std::string id, domain, address, mechanism, key;
    Deadline patience = Deadline::never();  // while the place is taken
    Deadline limit = Deadline::never();     // while it is granted
  };

  void run() noexcept;
  void turn();
  bool read_request(Request& request);
  void judge(Request request);
  bool is_of_the_pipeline(const Request& request) const;
  bool try_grant();
  void judge_waiting();
  Deadline next_judgement() const;
  void reply(Request& request, bool welcome);
  void refuse(Request& request, const std::string& reason);
  void set_free(const std::lock_guard<std::mutex>& locked);

  const std::optional<RawKey> key_;
  const double handshake_s_;
  Event& granted_;
  Refusals& refusals_;
  Event wake_;
  Socket socket_;
  std::deque<Request> waiting_;  // gate thread only

  mutable std::mutex mutex_;  // guards the following
  Place place_ = Place::kFree;
  Grant grant_{0, Deadline::never()};
  bool closing_ = false;

  std::thread thread_;  // last: starts when everything above is there
};

}  // namespace zmqpp::net
