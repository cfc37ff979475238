// A shared segment as its sender finds it: [u8 what | u64 word] again and again. The receiver may write anything where it
// releases slots; the sender refuses it, or takes back only what it gave, and never more than it gave.
//
// what: bit 0: a body is published, of `word` bytes as far as they fit; else a release is written. Of a release: bit 1
// puts the expected number in, bit 2 a slot that was given.
#include <vector>

#include "engine/segment_writer.h"
#include "fuzz.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT

namespace {

constexpr std::uint64_t kBytes = 1u << 20;
constexpr std::uint64_t kSession = 7;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<std::uint8_t> content(kBytes, 1);
  Options options;
  options.shm_bytes = kBytes;
  Stats stats;
  SegmentWriter writer(kSession, options, stats);
  const memory::Segment mapping = memory::Segment::open(writer.name(), wire::payload_offset() + writer.payload_bytes());
  auto* entries = reinterpret_cast<wire::Entry*>(mapping.bytes() + wire::entries_offset());
  auto* releases = reinterpret_cast<wire::Release*>(mapping.bytes() + wire::releases_offset());
  std::uint64_t published = 0, released = 0;
  fuzz::Input input(data, size);
  fuzz::accepts([&] {
    while (input.left() > 0 && published < wire::kSlots / 2) {
      const auto what = input.number<std::uint8_t>();
      auto word = input.number<std::uint64_t>();
      if (what & 1) {
        const std::uint64_t bytes = 64 + word % (kBytes / 4);
        const std::vector<Span> spans{{content.data(), bytes}};
        PayloadReader reader(spans, 1);
        const DictMark mark{.total = bytes, .tag = published, .manifest_size = 0};
        if (writer.write(wire::EntryKind::kPiece, mark, reader, bytes)) ++published;
        fuzz::require(published == 0 || entries[published - 1].number == published, "entries are numbered as they come");
      } else {
        if ((what & 4) && published > 0) word = (word & ~std::uint64_t{0xffff}) | entries[word % published].slot;
        if (what & 2) word = (released + 1) << 16 | (word & 0xffff);
        releases[released % wire::kSlots] = word;
        writer.room_for_piece();
        if (word >> 16 == released + 1) ++released;  // taken back, or it would have thrown
        fuzz::require(released <= published, "no more comes back than was given");
      }
    }
  });
  return 0;
}
