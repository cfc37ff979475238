// Counters of one link. Tests guard some of them (copies, messages) where others would guard a time.
//
// Owns: atomics. Blocks? never. Thread: all safe, relaxed: each is exact, a set of them is not a snapshot.
#pragma once

#include <atomic>
#include <cstdint>

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
};

inline void add(Stats::Count& counter, std::uint64_t amount = 1) {
  counter.fetch_add(amount, std::memory_order_relaxed);
}

}  // namespace zmqpp::engine
