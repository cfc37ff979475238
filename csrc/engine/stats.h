// Counters of one link. Tests guard some of them (copies, messages) where others would guard a time.
//
// Owns: atomics. Blocks? never. Thread: all safe, relaxed: each is exact, a set of them is not a snapshot.
#pragma once

#include <atomic>
#include <cstdint>

#include "engine/histogram.h"

namespace zmqpp::engine {

struct Stats {
  using Count = std::atomic<std::uint64_t>;
  Count bytes_sent{0};  // heads and bodies, as handed to ZeroMQ
  Count bytes_received{0};
  Count messages_sent{0};
  Count messages_received{0};
  Count dicts_sent{0};
  Count dicts_received{0};
  Count control_sent{0};
  Count control_received{0};
  Count chunks_sent{0};
  Count chunks_received{0};
  Count copies_out{0};  // memcpy calls from source tensors
  Count copies_in{0};   // memcpy calls into receive blocks
  Count relayed{0};
  Count stale{0};       // dropped: of an older epoch
  Count cancelled{0};   // dicts given up half-way, by this sender or by the one it receives from
  Count allocations{0};   // of payload memory from the system, by this link's sending half
  Count doorbells{0};     // sleepers woken in the other process
  Count in_flight{0};     // dicts accepted and not yet copied
  Count held_bytes{0};    // of the peer's segment, in tensors that are still in use
  Count send_wait_ns{0};  // for room: in the queue, the pool or the segment
  Count peer_wait_ns{0};  // for something to arrive
  Histogram send_ns;      // from a dict's acceptance until its source may be overwritten
  Histogram receive_ns;   // socket: from a dict's first message to its last; shared: from publishing to taking
};

inline void subtract(Stats::Count& counter, std::uint64_t amount = 1) {
  counter.fetch_sub(amount, std::memory_order_relaxed);
}

inline void add(Stats::Count& counter, std::uint64_t amount = 1) {
  counter.fetch_add(amount, std::memory_order_relaxed);
}

}  // namespace zmqpp::engine
