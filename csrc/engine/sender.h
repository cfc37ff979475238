// The sending half of a link: what waits to be sent, and the thread that sends what callers could not send themselves.
//
// Owns: the stream (the PUSH socket the next place connects to), the shared lane, the queue, the thread.
// Blocks? wait_peer; close, for the flush and the thread. push, try_shared and relay never.
// Thread: public calls from any thread; the private part below the mark runs on the sender thread, and never touches
//   Python. `stream_mutex_` is held by whoever uses the stream; callers only try it.
// Errors: the first one sticks: every queued ticket, waiter and later call gets it.
// Order: items leave in the order they were pushed, except that control messages may pass between the chunks of the
//   dict in front of them, and that dicts on the shared lane have an order of their own. So have control messages there:
//   one that finds no room takes the socket, and those behind it until that is gone; the receiver sorts them.
// Lane: decided once, after the receiver came; dicts pushed before wait for it.
// Deadlines: a dict whose deadline passes is removed, or cancelled when some of it is on its way already; its ticket
//   fails, the link goes on. A dict that was reported copied has no deadline any more: nobody would hear of the loss.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/event.h"
#include "engine/budget.h"
#include "engine/options.h"
#include "engine/outgoing.h"
#include "engine/shared_lane.h"
#include "engine/stats.h"
#include "engine/stream.h"
#include "memory/pool.h"

namespace zmqpp::engine {

class Sender {
 public:
  Sender(net::Context& context, const Options& options, Budget& budget, Event& wake, memory::Pool& pool, Stats& stats,
         net::Refusals& refusals);
  ~Sender();
  Sender(const Sender&) = delete;
  Sender& operator=(const Sender&) = delete;

  const std::string& bound() const { return stream_.bound(); }

  // The whole dict into the shared segment, on this thread. False: push it.
  bool try_shared(const std::vector<Span>& body, const DictMark& mark);
  // A control message into the shared segment, on this thread. False: push or relay it.
  bool try_control(const ControlMark& mark, const std::uint8_t* body, std::size_t size);
  void use_device(device::Device& device);  // pins the segment, unless payload is known not to take it
  void push(Outgoing item);   // the caller acquired its budget
  bool relay(Outgoing item);  // false: kMaxRelays are waiting. Once this half has failed it is lost like what waits here
  bool wait_peer(const Deadline& deadline);  // and for the choice of its lane. false: the deadline passed
  bool peer_connected() const;
  Lane lane() const;
  std::string lane_reason() const;  // why not the shared one
  std::string held_text() const;    // what of the shared segment is in use; empty on the other lane
  std::optional<Error> error() const;
  void fail(const Error& error);
  void leave(const Deadline& linger);  // returns when the goodbye is said; devices may still copy
  void close(const Deadline& linger);  // when nothing is under way either

 private:
  bool send_now(Outgoing& item);
  void nudge();
  void begin_shared();
  void count_socket(const Outgoing& item) { socket_controls_ += item.kind == wire::Kind::kControl ? 1 : 0; }  // with mutex_
  void wake();
  void open_shared();

  // ---- sender thread
  void run() noexcept;
  bool turn();  // one round of the loop; false: finished
  void note_peer();
  void choose_lane();
  bool is_settling() const;
  void settle(Lane lane, const std::string& reason);
  SharedLane::Progress pump_shared();
  bool expire();
  std::optional<Outgoing> next_item(bool only_control);
  bool finished();
  bool may_say_bye();
  void wait(Stream::Progress progress, SharedLane::Progress shared, Deadline until);
  void shut_down(const std::optional<Error>& error) noexcept;

  const Options options_;
  Budget& budget_;
  Event& wake_;
  Stats& stats_;
  std::mutex stream_mutex_;
  Stream stream_;
  std::unique_ptr<SharedLane> shared_;  // stays until the sender dies, whatever lane was chosen
  std::atomic<Lane> lane_{Lane::kUndecided};
  std::atomic<bool> waits_for_room_{false};  // the sender thread sleeps on the segment, not in its poll

  mutable std::mutex mutex_;  // guards the following
  std::condition_variable changed_;
  std::deque<Outgoing> queue_;
  std::size_t relays_ = 0;
  std::uint64_t socket_controls_ = 0;  // control messages that were given to the stream, or wait for it
  Deadline soonest_ = Deadline::never();  // of the queue; may be earlier than any that is left
  std::optional<Error> error_;
  std::string lane_reason_;
  bool connected_ = false;
  bool closing_ = false;
  Deadline linger_ = Deadline::never();

  Deadline settle_ = Deadline::never();  // sender thread only
  std::thread thread_;  // last: starts when everything above is there
};

}  // namespace zmqpp::engine
