// Body of the first message of a session: who is speaking, and which shared segment it offers.
//
//   [i64 rank | i64 world size | u64 payload bytes of the segment | u16 size of each of four texts | the texts]
//
// The texts: name, boot id of the sender's machine, the segment's name, why there is none.
//
// Owns: values. Blocks? never. Thread: pure. Errors: read_hello throws kMalformed.
#pragma once

#include <cstdint>
#include <string>

namespace zmqpp::wire {

struct Hello {
  std::int64_t rank = -1;       // -1 and 0: there are none
  std::int64_t world_size = 0;
  std::string name{};
  std::uint64_t segment_bytes = 0;  // 0: no segment is offered
  std::string boot_id{};
  std::string segment{};
  std::string no_segment{};  // the reason
};

std::string write_hello(const Hello& hello);  // texts that are too long are cut
Hello read_hello(const void* body, std::size_t size);

}  // namespace zmqpp::wire
