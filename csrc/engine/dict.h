// A received dict: what it looks like, and its bytes.
//
// Owns: both. Blocks? never. Thread: one at a time. Errors: none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "memory/receive_block.h"

namespace zmqpp::engine {

struct Dict {
  std::string manifest;
  std::shared_ptr<memory::ReceiveBlock> block;  // null: no payload
  std::uint64_t tag = 0;
  std::uint32_t epoch = 0;
  std::size_t counted = 0;  // bytes of the inbox's limit that it takes up until somebody takes it

  std::size_t held_bytes() const { return manifest.size() + (block ? block->size() : 0); }
};

}  // namespace zmqpp::engine
