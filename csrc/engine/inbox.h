// What was received and waits for the caller: control messages, and dicts matched to receive tickets in order.
//
// Dicts come from the receiver thread, or, once a ring is attached, out of the shared segment: then whoever waits reads
// it himself, without a hand-over from another thread.
//
// Owns: the waiting messages. Blocks? take_control and wait, until a message, a failure or the deadline.
// Thread: the receiver thread puts, any thread takes; `room` is signalled when a taker made room, or the ring broke.
// Errors: what was received before a failure is still handed out; then everybody gets that first error.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/deadline.h"
#include "base/event.h"
#include "engine/dict.h"
#include "engine/notice.h"
#include "engine/options.h"
#include "engine/ring_reader.h"
#include "engine/stats.h"
#include "net/message.h"
#include "wire/head.h"

namespace zmqpp::engine {

// What goes to the engine or to everyone is never out of date: the news of a loss crosses the epoch it ends.
inline bool ages(wire::Route route) { return route == wire::Route::kRequest || route == wire::Route::kLink; }

struct Control {
  net::Message frame;
  wire::Route route = wire::Route::kLink;
  std::uint64_t tag = 0;
  std::uint32_t epoch = 0;
};

// A place in the order of receives. State is guarded by the inbox's mutex.
struct RecvTicket {
  std::optional<Dict> dict;
  bool taken = false;
  bool awaited = false;  // its owner sleeps until the dict is here
};

using RecvTicketPtr = std::shared_ptr<RecvTicket>;

// Where messages come from: a waiter that has nothing else to do looks there itself, one hand-over less.
class Source {
 public:
  virtual ~Source() = default;
  virtual void read_now() noexcept = 0;   // puts what is there into the inbox; whoever else reads comes first
  virtual void read_on() noexcept = 0;    // the caller looks no more, and goes to sleep
  virtual bool read_controls() noexcept = 0;  // of the shared segment alone; false: there was nothing to be read
};

class Inbox {
 public:
  Inbox(const Options& options, Event& room, std::shared_ptr<Notice> notice, Stats& stats, std::uint32_t epoch = 0)
      : limit_bytes_(options.receive_limit_bytes),
        room_(room),
        notice_(std::move(notice)),
        stats_(stats),
        spin_(options.spin_us),
        epoch_(epoch) {}

  // Receiver thread, or whoever reads in its place.
  void attach(Source* source) { source_ = source; }  // before anybody waits
  bool has_room();  // one message always fits, however large, and any until a dict that is waited for is here; else
                    // dicts and control messages share the limit
  bool has_control_room();  // in the shared segment no dict is in front of a control message
  void attach(std::shared_ptr<RingReader> ring, const std::string& who);  // `who` writes to it, for error texts
  void detach();     // the ring is read no more; tensors keep its memory
  void read_ring();  // though nobody waits: for posted tickets, and dicts in pieces, which need memory of ours anyway
  void put(Control control);
  void put(Dict dict);
  void fail(const Error& error);
  std::uint32_t epoch() const;

  // Any thread.
  std::optional<Control> take_control(const Deadline& deadline);  // empty: the deadline passed
  RecvTicketPtr post();
  bool is_ready(const RecvTicketPtr& ticket);  // wait would not block
  std::optional<Dict> try_receive();           // the next dict, if it is there and nobody else waits for one
  std::optional<Dict> wait(const RecvTicketPtr& ticket, const Deadline& deadline);
  void cancel(const RecvTicketPtr& ticket);  // its dict, if any, goes to the next in order
  void set_epoch(std::uint32_t epoch);       // drops what is older; until then a newer one that came ends wait
  std::optional<Error> error() const;
  void arm(bool on);  // the notice: somebody waits for tickets in a poll set

 private:
  void drain_ring();
  std::optional<Dict> next_from_ring();
  std::optional<Dict> give(std::optional<Dict> dict);
  std::uint32_t changes() const { return ring_ ? ring_->bell() : static_cast<std::uint32_t>(changes_.load()); }
  void read_controls(std::unique_lock<std::mutex>& lock);
  void sleep(std::unique_lock<std::mutex>& lock, RingReader::Wants wants, std::uint32_t seen, const Deadline& deadline);
  void sleep_on_ring(std::unique_lock<std::mutex>& lock, RingReader::Wants wants, std::uint32_t seen,
                     const Deadline& deadline);
  void tell();
  void gave(std::size_t bytes);
  void make_room();  // or what counts as room has changed: the receiver thread looks again
  bool is_awaited() const;
  void drop_stale(const RecvTicketPtr& ticket);
  Error superseded() const;

  const std::size_t limit_bytes_;
  Event& room_;
  Source* source_ = nullptr;
  const std::shared_ptr<Notice> notice_;
  Stats& stats_;
  Spin spin_;
  std::atomic<std::uint64_t> changes_{0};  // counts what waiters on the socket's lane may wait for
  mutable std::mutex mutex_;               // guards the following
  std::condition_variable changed_;
  std::shared_ptr<RingReader> ring_;
  std::string ring_writer_;
  std::size_t ring_waiters_ = 0;
  bool full_ = false;  // the receiver thread found no room, and waits for it
  std::deque<Control> controls_;
  std::deque<Dict> dicts_;             // arrived before anybody asked
  std::deque<RecvTicketPtr> waiting_;  // asked before it arrived; one of the two is always empty
  std::size_t held_bytes_ = 0;         // of dicts not taken yet, and of control messages
  std::size_t control_bytes_ = 0;      // of these
  std::uint32_t epoch_;
  std::uint32_t newest_ = 0;  // of the control messages that came
  std::optional<Error> error_;
};

}  // namespace zmqpp::engine
