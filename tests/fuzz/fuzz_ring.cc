// A shared segment as its reader finds it: [u8 hold | u8 entries | entries, each [u8 repair | 64 bytes] | payload area].
// Every entry that is accepted lies within its bounds; every dict that comes out has the bytes of its entries.
//
// `repair` makes up for what random changes break first: bit 0 puts in the expected number, bit 1 a body as large as
// its parts, bit 2 an offset within the area, bit 3 total, tag and epoch of the entry before, bit 4 the checksum, bit 5
// a slot that there is.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/align.h"
#include "base/crc32c.h"
#include "engine/ring_reader.h"
#include "fuzz.h"
#include "memory/segment.h"
#include "wire/ring.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT
using wire::EntryKind;

namespace {

constexpr std::uint64_t kArea = 8u << 10;
constexpr std::uint64_t kSession = 7;
constexpr std::size_t kEntries = 16;
const wire::Limits kLimits{.max_control_bytes = 2048, .max_dict_bytes = 64u << 10};

// The sender's part: what it made of its segment.
class Forgery {
 public:
  Forgery() : segment_(memory::Segment::create(wire::payload_offset() + kArea, wire::payload_offset() + kArea)) {
    auto* head = new (segment_.bytes()) wire::SegmentHead{};
    std::memcpy(head->magic, wire::kSegmentMagic, sizeof head->magic);
    head->version = wire::kVersion;
    head->slots = wire::kSlots;
    head->session = kSession;
    head->payload_offset = wire::payload_offset();
    head->payload_bytes = kArea;
    head->state = static_cast<std::uint32_t>(wire::SegmentState::kOffered);
  }

  wire::Hello offer() const { return {.segment_bytes = kArea, .segment = segment_.name()}; }
  std::uint8_t* area() const { return segment_.bytes() + wire::payload_offset(); }
  std::uint64_t taken() const { return reinterpret_cast<const wire::SegmentHead*>(segment_.bytes())->taken; }
  wire::Entry& entry(std::size_t index) const {
    return reinterpret_cast<wire::Entry*>(segment_.bytes() + wire::entries_offset())[index];
  }

  void write(std::size_t index, const std::uint8_t* from, std::uint8_t repair) const {
    wire::Entry& to = entry(index);
    std::memcpy(static_cast<void*>(&to), from, sizeof to);
    if (repair & 1) to.number = index + 1;
    if (repair & 4) to.offset = to.offset % kArea / kAlign * kAlign;
    if (repair & 8 && index > 0) {
      const wire::Entry& before = entry(index - 1);
      to.total = before.total;
      to.tag = before.tag;
      to.epoch = before.epoch;
    }
    if (repair & 2 && to.kind == EntryKind::kWhole) {
      to.body_size_low = static_cast<std::uint32_t>(align_up(to.manifest_size) + to.total);
      to.body_size_high = 0;
    }
    if (repair & 32) to.slot = static_cast<std::uint16_t>(to.slot % wire::kSlots);
    const std::uint64_t size = std::uint64_t{to.body_size_high} << 32 | to.body_size_low;
    if (repair & 16 && to.offset <= kArea && size <= kArea - to.offset) to.checksum = crc32c(0, area() + to.offset, size);
  }

 private:
  memory::Segment segment_;
};

void check_entry(const wire::EntryView& view) {
  fuzz::require(view.slot < wire::kSlots && view.total <= kLimits.max_dict_bytes, "slot and total are within their limits");
  if (view.kind == EntryKind::kCancel) return;
  fuzz::require(view.offset % kAlign == 0 && view.offset <= kArea && view.size <= kArea - view.offset,
                "a body lies within the area");
  if (view.kind == EntryKind::kPiece) return fuzz::require(view.size > 0, "a piece has bytes");
  const std::uint64_t whole = align_up(view.manifest_size) + view.total;
  fuzz::require(view.kind == EntryKind::kWhole ? view.size == whole : view.size < whole, "sizes fit one another");
}

// The body that the entries up to `last`, which completed a dict, are to make.
std::vector<std::uint8_t> expected_body(const Forgery& forgery, std::size_t last) {
  std::size_t first = last;
  while (forgery.entry(first).kind == EntryKind::kPiece) --first;
  std::vector<std::uint8_t> body;
  for (std::size_t i = first; i <= last; ++i) {
    const wire::EntryView view = wire::read_entry(forgery.entry(i), kArea, kLimits);
    body.insert(body.end(), forgery.area() + view.offset, forgery.area() + view.offset + view.size);
  }
  return body;
}

void check_dict(const Dict& dict, const std::vector<std::uint8_t>& body) {
  const std::size_t front = align_up(dict.manifest.size());
  const std::size_t payload = dict.block ? dict.block->size() : 0;
  fuzz::require(body.size() == front + payload, "a dict comes out with its last byte");
  fuzz::require(std::memcmp(dict.manifest.data(), body.data(), dict.manifest.size()) == 0, "the manifest is the same");
  fuzz::require(payload == 0 || std::memcmp(dict.block->bytes(), body.data() + front, payload) == 0, "its bytes are, too");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Forgery forgery;
  fuzz::Input input(data, size);
  Options options;
  options.limits = kLimits;
  options.shm_hold_bytes = 64 * std::size_t{input.number<std::uint8_t>()} + 1;
  const std::size_t announced = input.number<std::uint8_t>() % kEntries;
  const std::uint8_t* entries = input.rest();
  const std::size_t count = std::min(announced, input.left() / (1 + sizeof(wire::Entry)));
  input.bytes(count * (1 + sizeof(wire::Entry)));
  std::memset(static_cast<void*>(&forgery.entry(0)), 0, (kEntries + 1) * sizeof(wire::Entry));
  std::memset(forgery.area(), 0, kArea);
  std::copy_n(input.rest(), std::min<std::size_t>(input.left(), kArea), forgery.area());
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* from = entries + i * (1 + sizeof(wire::Entry));
    forgery.write(i, from + 1, from[0]);
    fuzz::accepts([&] { check_entry(wire::read_entry(forgery.entry(i), kArea, kLimits)); });
  }
  const auto stats = std::make_shared<Stats>();
  const auto reader = std::make_shared<RingReader>(forgery.offer(), kSession, options, stats);
  std::vector<Dict> held;
  fuzz::accepts([&] {
    while (std::optional<Dict> dict = reader->take()) {
      const auto taken = forgery.taken();
      check_dict(*dict, expected_body(forgery, taken - 1));
      const bool release = dict->tag % 2 == 0;
      held.push_back(std::move(*dict));
      if (release) held.erase(held.begin());
    }
  });
  held.clear();
  fuzz::require(stats->held_bytes == 0, "everything lent is back");
  return 0;
}
