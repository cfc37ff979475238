// What a hello offers: [u64 mapped bytes | head of a shared segment | its name]. Refused, or all sizes are right; the name
// never leads out of the folder, and opens nothing that is not there.
#include <string>

#include "fuzz.h"
#include "memory/segment.h"
#include "wire/ring.h"

using namespace zmqpp;  // NOLINT: a program

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kHead = offsetof(wire::SegmentHead, state);
  constexpr std::uint64_t kSession = 7;
  fuzz::Input input(data, size);
  const auto mapped = input.number<std::uint64_t>();
  wire::SegmentHead head{};
  const std::size_t given = input.left() < kHead ? input.left() : kHead;
  if (given > 0) std::memcpy(static_cast<void*>(&head), input.bytes(given), given);
  const bool accepted = fuzz::accepts([&] { wire::check_segment(head, mapped, kSession); });
  fuzz::require(!accepted || (head.payload_bytes == mapped - wire::payload_offset() && head.session == kSession),
                "an accepted segment is as large as its mapping");
  const std::string name(reinterpret_cast<const char*>(input.rest()), input.left());
  try {
    memory::Segment::open(name, 4096);
    fuzz::require(false, "there is no such segment");
  } catch (const Error& error) {
    fuzz::require(error.code() == Code::kSharedMemory, "a name is refused with an error of shared memory");
  }
  return 0;
}
