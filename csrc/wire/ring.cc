#include "wire/ring.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/align.h"
#include "base/error.h"
#include "wire/segment_check.h"

namespace zmqpp::wire {
namespace {

void check_body(const EntryView& view, std::uint64_t payload_bytes) {
  require_valid(view.offset % kAlign == 0, "a body must start at a multiple of 64", view.offset);
  if (view.offset > payload_bytes || view.size > payload_bytes - view.offset) {
    malformed("a body [" + std::to_string(view.offset) + ", +" + std::to_string(view.size) +
              ") lies outside the payload area of " + std::to_string(payload_bytes) + " bytes");
  }
}

void check_sizes(const EntryView& view) {
  if (view.kind == EntryKind::kPiece) {
    require_valid(view.manifest_size == 0, "a piece has no manifest of its own", view.manifest_size);
    require_valid(view.size > 0, "a piece must carry bytes", view.size);
    return;
  }
  require_valid(view.manifest_size <= kMaxManifestBytes, "a manifest beyond the limit", view.manifest_size);
  const std::uint64_t whole = align_up(view.manifest_size) + view.total;
  if (view.kind == EntryKind::kWhole) require_valid(view.size == whole, "a body of another size than its parts", view.size);
  if (view.kind == EntryKind::kRemote) {
    const std::uint64_t parts = view.size > whole ? (view.size - whole) / sizeof(RemotePart) : 0;
    require_valid(view.size == whole + parts * sizeof(RemotePart), "a table of parts of an odd size", view.size);
    require_valid(parts > 0 && parts <= kMaxRemoteParts, "a number of parts that cannot be", parts);
  }
  if (view.kind == EntryKind::kFirst) require_valid(view.size < whole, "a first piece that is all of it", view.size);
}

}  // namespace

void write_entry(Entry& entry, const EntryView& from, std::uint64_t number) {
  entry.offset = from.offset;
  entry.total = from.total;
  entry.tag = from.tag;
  entry.sent_ns = from.sent_ns;
  entry.epoch = from.epoch;
  entry.manifest_size = from.manifest_size;
  entry.body_size_low = static_cast<std::uint32_t>(from.size);
  entry.body_size_high = static_cast<std::uint16_t>(from.size >> 32);
  entry.checksum = from.checksum;
  entry.slot = from.slot;
  entry.kind = from.kind;
  entry.flags = from.checked ? kEntryChecked : 0;
  entry.zero = 0;
  entry.number.store(number, std::memory_order_release);
}

EntryView read_entry(const Entry& entry, std::uint64_t payload_bytes, const Limits& limits) {
  EntryView view;
  view.offset = entry.offset;
  view.size = std::uint64_t{entry.body_size_high} << 32 | entry.body_size_low;
  view.total = entry.total;
  view.tag = entry.tag;
  view.sent_ns = entry.sent_ns;
  view.epoch = entry.epoch;
  view.manifest_size = entry.manifest_size;
  view.checksum = entry.checksum;
  view.slot = entry.slot;
  view.kind = entry.kind;
  const std::uint8_t flags = entry.flags;
  view.checked = (flags & kEntryChecked) != 0;
  // From here on the copy alone is looked at: the writer may change the entry meanwhile.
  asm volatile("" : : "g"(&view) : "memory");
  require_valid((flags & ~kEntryChecked) == 0, "unknown flags", flags);
  require_valid(view.slot < kSlots, "there is no such slot", view.slot);
  if (view.total > limits.max_dict_bytes) {
    malformed("dict payload of " + std::to_string(view.total) + " bytes, the limit is " +
              std::to_string(limits.max_dict_bytes));
  }
  switch (view.kind) {
    case EntryKind::kCancel: return view;
    case EntryKind::kWhole:
    case EntryKind::kFirst:
    case EntryKind::kPiece:
    case EntryKind::kRemote:
      check_body(view, payload_bytes);
      check_sizes(view);
      return view;
  }
  malformed("unknown kind of entry " + std::to_string(static_cast<int>(view.kind)));
}

void check_part(const RemotePart& part, std::uint64_t total, std::uint64_t device_bytes) {
  require_valid(part.offset % kAlign == 0, "a part must start at a multiple of 64", part.offset);
  require_valid(part.offset <= total && part.size <= total - part.offset, "a part outside its payload", part.offset);
  require_valid(part.place <= device_bytes && part.size <= device_bytes - part.place, "a part outside the device memory", part.place);
}

void check_pinned(std::uint64_t pinned_bytes, std::uint64_t payload_bytes) {
  require_valid(pinned_bytes % kPage == 0 && pinned_bytes <= payload_bytes, "pinned bytes that cannot be", pinned_bytes);
}

void write_reason(SegmentHead& head, const std::string& reason) {
  const std::size_t size = std::min(reason.size(), sizeof head.device_reason - 1);
  std::memcpy(head.device_reason, reason.data(), size);
  head.device_reason[size] = '\0';
}

std::string read_reason(const SegmentHead& head) {
  char copy[sizeof head.device_reason];
  std::memcpy(copy, head.device_reason, sizeof copy);
  copy[sizeof copy - 1] = '\0';
  std::string text = copy;
  for (char& c : text) c = c >= ' ' && c <= '~' ? c : '?';
  return text.empty() ? "it says no reason" : text;
}

void check_segment(const SegmentHead& head, std::uint64_t mapped_bytes, std::uint64_t session) {
  if (std::memcmp(head.magic, kSegmentMagic, sizeof kSegmentMagic) != 0) malformed("it does not start with its magic");
  if (head.version != kVersion) {
    throw Error(Code::kVersion, "receive", "the shared segment has version " + std::to_string(head.version) +
                                               ", this side version " + std::to_string(kVersion));
  }
  const std::uint64_t bytes = head.payload_bytes;
  require_valid(head.session == session, "it belongs to another session", head.session);
  require_valid(head.slots == kSlots, "another number of slots", head.slots);
  require_valid(head.payload_offset == payload_offset(), "the payload area begins elsewhere", head.payload_offset);
  require_valid(mapped_bytes >= payload_offset() && bytes == mapped_bytes - payload_offset(),
                "the payload area has another size than the file", bytes);
}

}  // namespace zmqpp::wire
