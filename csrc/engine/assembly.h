// Puts messages of one session together and checks that none is missing, repeated or foreign.
//
// Owns: the dict being assembled. Blocks? never. Thread: the receiver's.
// Errors: kSequence (gap, repeat, other session, no hello), kMalformed (chunks or a cancel that do not fit their dict), kResource.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "engine/dict.h"
#include "engine/stats.h"
#include "memory/pinned_slab.h"
#include "net/message.h"
#include "wire/head.h"

namespace zmqpp::engine {

class Assembly {
 public:
  explicit Assembly(Stats& stats) : stats_(stats) {}

  // Where dicts go as long as it has room, on their way to a device; null: ordinary memory.
  void use(std::shared_ptr<memory::PinnedSlab> slab) { slab_ = std::move(slab); }

  void check_order(const wire::Head& head);
  std::uint64_t session() const { return session_; }

  // A dict or chunk message; returns the dict when it is complete.
  std::optional<Dict> take_dict(const wire::Head& head, net::Message& frame);
  std::optional<Dict> take_chunk(const wire::Head& head, net::Message& frame);
  void take_cancel(const wire::Head& head);  // the incomplete dict is forgotten, its memory free again

 private:
  Stats& stats_;
  std::shared_ptr<memory::PinnedSlab> slab_;
  std::uint64_t session_ = 0;
  std::uint64_t next_sequence_ = 0;
  bool checked_ = false;          // the session's messages carry checksums
  std::optional<Dict> open_;      // waits for chunks
  std::uint64_t began_ns_ = 0;
  std::uint64_t filled_ = 0;      // bytes of it that came
};

}  // namespace zmqpp::engine
