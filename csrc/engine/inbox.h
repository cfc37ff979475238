// What was received and waits for the caller: control messages, and dicts matched to receive tickets in order.
//
// Owns: the waiting messages. Blocks? take_control and wait, until a message, a failure or the deadline.
// Thread: the receiver thread puts, any thread takes; `room` is signalled when a taker made room.
// Errors: what was received before a failure is still handed out; then everybody gets that first error.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/deadline.h"
#include "base/event.h"
#include "engine/stats.h"
#include "memory/receive_block.h"
#include "net/message.h"
#include "wire/head.h"

namespace zmqpp::engine {

struct Control {
  net::Message frame;
  wire::Route route = wire::Route::kLink;
  std::uint64_t tag = 0;
  std::uint32_t epoch = 0;
};

struct Dict {
  std::string manifest;
  std::shared_ptr<memory::ReceiveBlock> block;  // null: no payload
  std::uint64_t tag = 0;
  std::uint32_t epoch = 0;

  std::size_t held_bytes() const { return manifest.size() + (block ? block->size() : 0); }
};

// A place in the order of receives. State is guarded by the inbox's mutex.
struct RecvTicket {
  std::optional<Dict> dict;
  bool taken = false;
};

using RecvTicketPtr = std::shared_ptr<RecvTicket>;

class Inbox {
 public:
  Inbox(std::size_t limit_bytes, std::size_t max_controls, Event& room, Stats& stats)
      : limit_bytes_(limit_bytes), max_controls_(max_controls), room_(room), stats_(stats) {}

  // Receiver thread.
  bool has_room() const;  // always for one dict and one control message
  void put(Control control);
  void put(Dict dict);
  void fail(const Error& error);
  std::uint32_t epoch() const;

  // Any thread.
  std::optional<Control> take_control(const Deadline& deadline);  // empty: the deadline passed
  RecvTicketPtr post();
  bool is_ready(const RecvTicketPtr& ticket) const;  // wait would not block
  std::optional<Dict> wait(const RecvTicketPtr& ticket, const Deadline& deadline);
  void cancel(const RecvTicketPtr& ticket);  // its dict, if any, goes to the next in order
  void set_epoch(std::uint32_t epoch);       // drops what is older
  std::optional<Error> error() const;

 private:
  template <typename Ready>
  void wait_for(std::unique_lock<std::mutex>& lock, const Deadline& deadline, Ready ready);
  void gave(std::size_t bytes);
  void drop_stale(const RecvTicketPtr& ticket);

  const std::size_t limit_bytes_;
  const std::size_t max_controls_;
  Event& room_;
  Stats& stats_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Control> controls_;
  std::deque<Dict> dicts_;             // arrived before anybody asked
  std::deque<RecvTicketPtr> waiting_;  // asked before it arrived; one of the two is always empty
  std::size_t held_bytes_ = 0;         // of dicts not taken yet, and of control messages
  std::uint32_t epoch_ = 0;
  std::optional<Error> error_;
};

}  // namespace zmqpp::engine
