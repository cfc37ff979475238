// The receiving half of a link: the PULL socket connected to the previous place, and the thread that reads it.
//
// Owns: socket, watch, assembly, thread. Not the inbox it fills, nor where it relays to (may be null).
// Blocks? wait_peer; close waits for the thread, which never waits for anything but its poll.
// Thread: public calls from any thread; the rest needs `reading_`, which the receiver thread holds except while it
//   polls. A caller that waits for a message reads in its place when it can (read_now). Nobody touches Python.
// Errors: the first one sticks and reaches the caller through the inbox, behind everything received before it.
// Back-pressure: when the inbox is full the socket is not read, so TCP stops the sender.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/event.h"
#include "engine/assembly.h"
#include "engine/budget.h"
#include "engine/inbox.h"
#include "engine/options.h"
#include "engine/outgoing.h"
#include "engine/stats.h"
#include "net/peer_watch.h"
#include "net/socket.h"
#include "wire/hello.h"

namespace zmqpp::engine {

// Where relayed control messages go: the sending half that the link has at that moment.
class Onward {
 public:
  virtual ~Onward() = default;
  virtual bool try_control(const ControlMark& mark, const std::uint8_t* body, std::size_t size) = 0;  // false: relay
  // What a half that has failed is given is lost, and it reports itself; the half may be replaced meanwhile. An error: it
  // had no room, and has failed now.
  virtual std::optional<Error> relay(Outgoing item) = 0;
};

class Receiver : public Source {
 public:
  Receiver(net::Context& context, const Options& options, Inbox& inbox, Event& wake, Onward* onward,
           memory::Pool* relay_frames, Budget& budget, std::shared_ptr<Stats> stats);
  ~Receiver() override;
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;

  bool wait_peer(const Deadline& deadline);  // its hello came, not only its connection. false: the deadline passed
  bool peer_connected() const;
  std::string last_refusal() const;
  std::string key_trouble() const;  // what is wrong with the sender's key, or empty
  Lane lane() const;
  std::string lane_reason() const;  // why not the shared one
  void read_now() noexcept override;
  void read_on() noexcept override;
  bool read_controls() noexcept override;
  void use_device(device::Ordinal ordinal);  // from now on; Link::use_device
  void close();

 private:
  void pin_arrivals();
  void run() noexcept;
  bool turn();
  bool read_turn(bool& room);  // true: there may be more
  void watch_peer();
  bool read_some();  // false: nothing there
  void take(const wire::Head& head, net::Message frame);
  void take_hello(net::Message& frame);
  void check_neighbour(const wire::Hello& hello) const;
  void choose_lane(const wire::Hello& hello);
  std::string open_ring(const wire::Hello& hello);  // why it cannot be; empty: it is
  bool drain_controls();
  void take_socket_control(const wire::Head& head, net::Message frame);
  void take_control(const wire::Head& head, net::Message frame);
  void relay(const wire::Head& head, net::Message& frame);
  void pause_if_turned_away();
  void retry_if_stalled();
  void restart_silence();
  void check_silence();
  std::string who() const;

  const Options options_;
  Inbox& inbox_;
  Event& wake_;
  Onward* const onward_;
  memory::Pool* const relay_frames_;  // there when onward_ is
  Budget& budget_;
  int readable_ = -1;  // the socket's descriptor: there may be something to read
  const std::shared_ptr<Stats> shared_stats_;  // a ring may outlive the link
  Stats& stats_;
  std::mutex reading_;  // guards the following
  net::Socket socket_;
  net::PeerWatch watch_;
  Assembly assembly_;
  std::uint64_t socket_controls_ = 0;  // control messages that the socket brought
  device::Ordinal device_;            // where dicts go; -1: nowhere
  std::optional<Error> broken_;  // what a caller met while it read in the thread's place
  std::atomic<std::uint64_t> caller_ns_ = 0;  // when a caller last read in the thread's place; 0: none does
  bool finished_ = false;        // the thread reads no more, and nobody else shall

  mutable std::mutex mutex_;  // guards the following
  std::condition_variable changed_;
  bool greeted_ = false;
  bool over_ = false;
  bool closing_ = false;
  std::string last_refusal_;
  std::string key_trouble_;
  std::string lane_reason_;
  std::shared_ptr<RingReader> ring_;  // the inbox's, once it has one; changed with both mutexes
  std::atomic<Lane> lane_{Lane::kUndecided};

  Deadline silence_ = Deadline::never();  // with reading_
  Deadline retry_ = Deadline::never();
  Deadline pause_ = Deadline::never();  // until then there is no connection, and none is tried
  double pause_s_ = 0;
  Deadline poll_until_ = Deadline::never();  // receiver thread only
  int looks_ = 0;                         // that found no sign of life, one after the other
  std::thread thread_;                    // last: starts when everything above is there
};

}  // namespace zmqpp::engine
