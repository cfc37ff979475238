// The sending half of a link: one thread that owns the PUSH socket the next place connects to.
//
// Owns: socket, watch, chunk pool, queue, thread.
// Blocks? push waits for room under its deadline; wait_peer; close waits for the flush and the thread. relay never.
// Thread: public calls from any thread; the private part runs on the sender thread only, and never touches Python.
// Errors: the first one sticks: every queued ticket, waiter and later call gets it.
// Order: items leave in the order they were pushed, except that control messages may pass between the chunks of
//   the dict in front of them.
// Deadlines: a dict whose deadline passes is removed, or cancelled when some of it is on its way already; its ticket
//   fails, the link goes on. A dict that was reported copied has no deadline any more: nobody would hear of the loss.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/event.h"
#include "engine/budget.h"
#include "engine/options.h"
#include "engine/outgoing.h"
#include "engine/stats.h"
#include "memory/pool.h"
#include "net/peer_watch.h"
#include "net/socket.h"
#include "net/socket_file.h"

namespace zmqpp::engine {

class Sender {
 public:
  Sender(net::Context& context, const Options& options, Budget& budget, Event& wake, memory::Pool& pool, Stats& stats);
  ~Sender();
  Sender(const Sender&) = delete;
  Sender& operator=(const Sender&) = delete;

  const std::string& bound() const { return bound_; }

  void push(Outgoing item);   // the caller acquired its budget
  bool relay(Outgoing item);  // false: kMaxRelays are waiting, or this half has failed
  bool wait_peer(const Deadline& deadline);  // false: the deadline passed
  bool peer_connected() const;
  std::optional<Error> error() const;
  void fail(const Error& error);
  void close(const Deadline& linger);

 private:
  // A message built and not yet taken by ZeroMQ.
  struct Pending {
    wire::Head head;
    net::Message frame;
    std::optional<Outgoing> item;  // the item this message starts; empty for hello, chunk, beat, bye, cancel
  };
  // A dict whose chunks are on their way.
  struct Current {
    Outgoing item;
    PayloadReader reader;
    std::uint64_t offset = 0;
    explicit Current(Outgoing from) : item(std::move(from)), reader(item.payload) {}
    Current(const Current&) = delete;  // `reader` points into `item`
  };
  enum class Progress { kIdle, kMore, kBlocked, kNoChunk };

  void run() noexcept;
  bool turn();               // one round of the loop; false: finished
  void watch_peer();
  bool expire();             // true: something was removed, so that there may be something else to do
  void cancel_current();
  void drop_expired(Outgoing item);
  Progress send_ready();
  Progress build_next();     // kMore: pending_ is filled
  void build_hello();
  void build_item(Outgoing item);
  bool build_chunk();
  void build_plain(wire::Kind kind);
  void stage(const wire::Head& head, net::Message frame);
  std::optional<Outgoing> next_item();
  void on_sent();
  bool finished();
  bool may_say_bye();
  void wait(Progress progress);
  void shut_down(const std::optional<Error>& error) noexcept;

  const Options options_;
  Budget& budget_;
  Event& wake_;
  memory::Pool& pool_;
  Stats& stats_;
  const std::uint64_t session_;
  std::string bound_;
  net::Socket socket_;
  net::PeerWatch watch_;
  std::optional<net::SocketFile> file_;

  mutable std::mutex mutex_;  // guards the following
  std::condition_variable changed_;
  std::deque<Outgoing> queue_;
  std::size_t relays_ = 0;
  Deadline soonest_ = Deadline::never();  // of the queue; may be earlier than any that is left
  std::optional<Error> error_;
  bool connected_ = false;
  bool closing_ = false;
  Deadline linger_ = Deadline::never();

  std::optional<Pending> pending_;  // sender thread only, from here on
  std::optional<Current> current_;
  std::optional<wire::Head> cancel_;  // of a dict cut off by its deadline; goes in front of everything else
  std::uint64_t sequence_ = 0;
  bool hello_sent_ = false;
  bool bye_sent_ = false;
  Deadline next_beat_ = Deadline::never();
  std::thread thread_;  // last: starts when everything above is there
};

}  // namespace zmqpp::engine
