// How much a sender may hold: bytes and items that were accepted and are not on their way yet.
//
// Owns: two counts. Blocks? acquire, until there is room or the deadline. Thread: all safe; release also runs on
// libzmq's thread, so the budget must outlive the ZeroMQ context.
// Errors: acquire throws kPoolTimeout with what is held, or the error the sender failed with.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>

#include "base/deadline.h"
#include "base/error.h"
#include "engine/stats.h"
#include "memory/pool.h"
#include "net/message.h"

namespace zmqpp::engine {

class Budget {
 public:
  Budget(std::size_t max_bytes, std::size_t max_items) : max_bytes_(max_bytes), max_items_(max_items) {}

  // Waits for room. One item always fits, however large, when nothing else is held.
  // Returns false when `slice` passed; the caller decides whether its own deadline did.
  bool acquire(std::size_t bytes, const Deadline& slice);
  void take(std::size_t bytes);  // without waiting: relays, which are bounded by count elsewhere
  void release(std::size_t bytes, std::size_t items) noexcept;
  void fail(const Error& error);  // wakes every waiter; the first error stays
  void revive();                  // the half was opened anew; what the old one still holds is released in time

  Error timeout_error(double waited_s) const;

 private:
  const std::size_t max_bytes_;
  const std::size_t max_items_;
  mutable std::mutex mutex_;
  std::condition_variable freed_;
  std::size_t bytes_ = 0;
  std::size_t items_ = 0;
  std::optional<Error> error_;
};

// A frame with room for the head and a body of `size` bytes, whose bytes return to `budget` when libzmq is done.
// Small ones live inside libzmq's own allocation and return at once when sent: `held_bytes` tells which it was.
struct BudgetedFrame {
  net::Message frame;
  std::size_t held_bytes = 0;  // still to be released by the sender once the frame is handed over
};

// Larger ones lie in a chunk of `pool`, or on the heap when it has none that is free and large enough.
BudgetedFrame make_frame(std::size_t size, Budget& budget, memory::Pool& pool, Stats& stats);

inline constexpr std::size_t kFrameFront = 64;  // what the pool's chunks need besides the frame

}  // namespace zmqpp::engine
