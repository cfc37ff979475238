// One whole message: its head is refused, or writes back as the same 64 bytes and keeps to the limits.
#include "fuzz.h"
#include "wire/head.h"

using namespace zmqpp::wire;  // NOLINT: a program

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Limits limits{.max_control_bytes = 2048, .max_dict_bytes = 1u << 20};
  Head head;
  if (!fuzz::accepts([&] { head = read_head(data, size, limits); })) return 0;
  HeadBytes again{};
  write_head(head, again.data());
  const std::size_t own = (head.flags & kFlagChecked) != 0 ? 4 : 0;  // the checksum, which is written later
  fuzz::require(std::memcmp(again.data(), data, kHeadSize - own) == 0, "a head reads and writes the same");
  fuzz::require(head.body_size == size - kHeadSize, "the body is as long as announced");
  fuzz::require(head.total <= limits.max_dict_bytes, "the payload is within its limit");
  fuzz::require(head.offset <= head.total, "a chunk lies within its payload");
  fuzz::require(head.kind != Kind::kChunk || head.body_size <= head.total - head.offset, "all of a chunk does");
  return 0;
}
