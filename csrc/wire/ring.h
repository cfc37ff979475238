// Layout of a shared segment: the way payload takes between two processes of one host. Prose: docs/wire_format.md,
// section "Shared segment"; a change touches both, and the version.
//
//   [ head, one page | entries | releases | control ring | payload area ]
//
// Owns: nothing; all of it lies in shared memory, so every value read here may change at any moment, and may be a lie.
// Blocks? never. Thread: one writer per word, named below. Errors: check_entry throws kMalformed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/futex.h"
#include "wire/constants.h"
#include "wire/control_record.h"
#include "wire/head.h"

namespace zmqpp::wire {

inline constexpr char kSegmentMagic[8] = {'Z', 'M', 'Q', 'P', 'S', 'E', 'G', '1'};
inline constexpr std::uint32_t kSlots = 1024;  // dicts that may be on their way or held by the receiver; a power of two
inline constexpr std::size_t kPage = 4096;

// Decided once, by a compare-and-swap from kOffered: who comes second takes the first one's word.
enum class SegmentState : std::uint32_t {
  kOffered = 1,    // written by the sender, named in its hello
  kAccepted = 2,   // by the receiver: every dict comes through here
  kRefused = 3,    // by the receiver: it was told to use the socket, or cannot map the segment
  kWithdrawn = 4,  // by the sender: nobody answered in time
};

// Whether the receiver copies from the sender's device memory: decided once, by it. Who leaves kOffered does so by a
// compare-and-swap. The sender frees the memory when nobody has it open: in every state but kOpening and kAccepted, or when
// the receiver, which locks the segment before it opens anything, is dead.
enum class DeviceState : std::uint32_t {
  kNone = 0,
  kOffered = 1,    // by the sender
  kAccepted = 2,   // by the receiver, which has opened it
  kRefused = 3,    // by the receiver: `device_reason` says why
  kOpening = 4,    // by the receiver, for a moment
  kClosed = 5,     // by the receiver, after kAccepted: it has closed it
  kWithdrawn = 6,  // by the sender: the receiver came too late
};

// Flags in SegmentHead::attention.
inline constexpr std::uint32_t kSleeperUnit = 4;  // the rest of the word counts threads that sleep on the bell
inline constexpr std::uint32_t kNudge = 1;        // also say so by a message: somebody waits in a poll set
inline constexpr std::uint32_t kRelays = 2;       // say so of control messages while nobody sleeps: they are to be passed on

struct alignas(64) SegmentHead {
  char magic[8];
  std::uint32_t version;
  std::uint32_t slots;
  std::uint64_t session;         // that of the hello which offers it
  std::uint64_t payload_offset;  // from the start of the segment
  std::uint64_t payload_bytes;
  alignas(64) FutexWord state;      // SegmentState
  alignas(64) FutexWord bell;       // the receiver sleeps on it; both add to it, then wake
  alignas(64) FutexWord attention;  // receiver: who wants to be woken
  alignas(64) FutexWord room;       // the sender sleeps on it; the receiver adds to it when asked to
  alignas(64) FutexWord room_wanted;  // sender: it sleeps on `room`
  alignas(64) std::atomic<std::uint64_t> taken;  // receiver: entries it has taken, for the sender's error texts
  alignas(64) FutexWord device_state;            // DeviceState
  std::uint64_t device_bytes;                    // of the sender's device memory; it and the next before kOffered
  unsigned char device_handle[64];               // CUDA's, for another process
  alignas(64) std::atomic<std::uint64_t> pinned_bytes;  // sender: from the payload area's start, before an entry that needs it
  alignas(64) char device_reason[192];           // receiver, before kRefused: text that ends with a zero
  alignas(64) std::atomic<std::uint64_t> control_written;  // sender: bytes so far; a record is there when they cover it
  alignas(64) std::atomic<std::uint64_t> control_read;     // receiver: bytes so far
};
static_assert(sizeof(SegmentHead) <= kPage);

enum class EntryKind : std::uint8_t {
  kWhole = 1,  // body = [manifest | zeros to 64 | payload]: tensors may be views of it
  kFirst = 2,  // the first bytes of such a body: the rest follows in pieces, so that it may be larger than the segment
  kPiece = 3,  // the next bytes; they are copied out
  kCancel = 4, // the rest of it will not come
  kRemote = 5, // as kWhole, but some of the payload is in the sender's device memory: see RemotePart
};

// Behind the payload of a kRemote body, until its end: what is not in the body. The bytes there mean nothing.
struct RemotePart {
  std::uint64_t offset;  // in the payload; a multiple of kAlign
  std::uint64_t size;
  std::uint64_t place;   // in the sender's device memory
};
inline constexpr std::size_t kMaxRemoteParts = 4096;

// One line of cache, so that the receiver gets everything with the one miss that tells it of the entry.
struct alignas(64) Entry {
  std::atomic<std::uint64_t> number;  // 1, 2, 3, …; stored last: the entry is there when its number is
  std::uint64_t offset;               // of the body, in the payload area; a multiple of kAlign
  std::uint64_t total;                // of the whole dict's payload
  std::uint64_t tag;
  std::uint64_t sent_ns;              // CLOCK_MONOTONIC
  std::uint32_t epoch;
  std::uint32_t manifest_size;        // kWhole, kFirst
  std::uint32_t body_size_low;
  std::uint32_t checksum;
  std::uint16_t body_size_high;
  std::uint16_t slot;
  EntryKind kind;
  std::uint8_t flags;                 // kFlagChecked
  std::uint16_t zero;
};
static_assert(sizeof(Entry) == 64);

inline constexpr std::uint8_t kEntryChecked = 1;  // `checksum` is the crc32c of the body

// A slot the receiver needs no more: (how many before it, plus one) << 16 | slot.
using Release = std::atomic<std::uint64_t>;

// What the receiver works with: a private copy, checked.
struct EntryView {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::uint64_t total = 0;
  std::uint64_t tag = 0;
  std::uint64_t sent_ns = 0;
  std::uint32_t epoch = 0;
  std::uint32_t manifest_size = 0;
  std::uint32_t checksum = 0;
  std::uint16_t slot = 0;
  EntryKind kind = EntryKind::kWhole;
  bool checked = false;
};

void write_entry(Entry& entry, const EntryView& from, std::uint64_t number);

// Copies the entry, then checks the copy. `payload_bytes`: of the area, as mapped.
EntryView read_entry(const Entry& entry, std::uint64_t payload_bytes, const Limits& limits);

constexpr std::uint64_t entries_offset() { return kPage; }
constexpr std::uint64_t releases_offset() { return entries_offset() + kSlots * sizeof(Entry); }
constexpr std::uint64_t control_offset() {
  return (releases_offset() + kSlots * sizeof(Release) + kPage - 1) / kPage * kPage;
}
constexpr std::uint64_t payload_offset() { return control_offset() + kControlRing; }

// Checks a private copy of one part against the payload it belongs to and the memory it lies in. Throws kMalformed.
void check_part(const RemotePart& part, std::uint64_t total, std::uint64_t device_bytes);

// What the sender has pinned, against the payload area. Throws kMalformed.
void check_pinned(std::uint64_t pinned_bytes, std::uint64_t payload_bytes);

// Why the receiver refuses device memory; what does not fit is cut. Read: printable, whatever lies there.
void write_reason(SegmentHead& head, const std::string& reason);
std::string read_reason(const SegmentHead& head);

// The sizes a segment's head announces, against what was mapped. Throws kMalformed, kVersion.
void check_segment(const SegmentHead& head, std::uint64_t mapped_bytes, std::uint64_t session);

}  // namespace zmqpp::wire
