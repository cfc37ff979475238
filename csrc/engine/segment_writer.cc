#include "engine/segment_writer.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/align.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "engine/retired_rings.h"
#include "memory/copy.h"

namespace zmqpp::engine {
namespace {

constexpr std::uint64_t kFirstCommit = 256u << 10;   // touched when opening: a link that is never used costs no more
constexpr std::uint64_t kCommitStep = 4u << 20;
constexpr std::uint64_t kLargestPiece = 4u << 20;    // stays in the caches between being copied in and out
constexpr std::uint64_t kSmallestPiece = 64u << 10;
constexpr std::size_t kPieces = 4;
constexpr std::size_t kCheckedStep = 64u << 10;      // copied, then summed while it is still in the first cache

bool has_manifest(wire::EntryKind kind) {
  return kind == wire::EntryKind::kWhole || kind == wire::EntryKind::kFirst || kind == wire::EntryKind::kRemote;
}

bool is_piece(wire::EntryKind kind) { return kind == wire::EntryKind::kFirst || kind == wire::EntryKind::kPiece; }

}  // namespace

SegmentWriter::SegmentWriter(std::uint64_t session, const Options& options, Stats& stats)
    : checksum_(options.checksum),
      pinned_bytes_(options.pinned_bytes / wire::kPage * wire::kPage),
      payload_bytes_(options.shm_bytes),
      stats_(stats),
      segment_(memory::Segment::create(wire::payload_offset() + options.shm_bytes,
                                       wire::payload_offset() + std::min<std::uint64_t>(kFirstCommit, options.shm_bytes))),
      controls_(segment_.bytes(), options.checksum),
      committed_(std::min<std::uint64_t>(kFirstCommit, options.shm_bytes)),
      arena_(options.shm_bytes, wire::kSlots),
      slots_(wire::kSlots),
      next_(options.next),
      device_ring_bytes_(options.device_ring_bytes) {
  sweep_rings();
  free_slots_.reserve(wire::kSlots);
  for (std::uint32_t i = wire::kSlots; i-- > 0;) free_slots_.push_back(static_cast<std::uint16_t>(i));
  auto* made = new (segment_.bytes()) wire::SegmentHead{};
  std::memcpy(made->magic, wire::kSegmentMagic, sizeof made->magic);
  made->version = wire::kVersion;
  made->slots = wire::kSlots;
  made->session = session;
  made->payload_offset = wire::payload_offset();
  made->payload_bytes = options.shm_bytes;
  made->state.store(static_cast<std::uint32_t>(wire::SegmentState::kOffered), std::memory_order_release);
}

SegmentWriter::~SegmentWriter() {
  if (device_memory_) retire_ring(std::move(device_memory_), std::move(segment_));
}

wire::SegmentState SegmentWriter::state() const {
  return static_cast<wire::SegmentState>(head().state.load(std::memory_order_acquire));
}

bool SegmentWriter::withdraw() {
  auto offered = static_cast<std::uint32_t>(wire::SegmentState::kOffered);
  return head().state.compare_exchange_strong(offered, static_cast<std::uint32_t>(wire::SegmentState::kWithdrawn));
}

wire::Entry& SegmentWriter::entry(std::uint64_t number) const {
  auto* entries = reinterpret_cast<wire::Entry*>(segment_.bytes() + wire::entries_offset());
  return entries[(number - 1) % wire::kSlots];
}

wire::Release& SegmentWriter::release(std::uint64_t number) const {
  auto* releases = reinterpret_cast<wire::Release*>(segment_.bytes() + wire::releases_offset());
  return releases[(number - 1) % wire::kSlots];
}

// ---- room -------------------------------------------------------------------------------------------------------

bool SegmentWriter::fits_whole(std::uint64_t size) const { return size <= arena_.bytes() / 4 * 3; }

std::uint64_t SegmentWriter::piece_size() const {
  return std::clamp(arena_.bytes() / 8 / kAlign * kAlign, kSmallestPiece, kLargestPiece);
}

// Few at a time: more would neither be faster nor stay in the caches, only take memory.
std::uint64_t SegmentWriter::room_for_piece() {
  reclaim();
  return free_slots_.empty() || pieces_ >= kPieces ? 0 : std::min(arena_.largest(), piece_size()) / kAlign * kAlign;
}

bool SegmentWriter::all_taken() const { return head().taken.load(std::memory_order_relaxed) >= placed_; }

void SegmentWriter::reclaim() {
  while (true) {
    const std::uint64_t word = release(released_ + 1).load(std::memory_order_acquire);
    if (word >> 16 != released_ + 1) return;
    const std::size_t index = word & 0xffff;
    if (index >= slots_.size() || slots_[index].number == 0) {
      throw Error(Code::kMalformed, "send",
                  "shared segment: the receiver released slot " + std::to_string(index) + ", which it was not given");
    }
    Slot& slot = slots_[index];
    arena_.give_back(slot.offset, slot.size);
    pieces_ -= slot.is_piece ? 1 : 0;
    if (slot.ring_size > 0) {
      device_arena_->give_back(slot.ring_offset, slot.ring_size);
      --remote_slots_;
    }
    slot = {};
    free_slots_.push_back(static_cast<std::uint16_t>(index));
    ++released_;
  }
}

std::optional<std::uint64_t> SegmentWriter::take_space(std::uint64_t size) {
  reclaim();
  while (!free_slots_.empty()) {
    const auto offset = arena_.take(size);
    if (!offset) return std::nullopt;
    const std::uint64_t end = *offset + memory::Arena::rounded(std::max<std::uint64_t>(size, 1));
    if (end <= committed_ || commit(end)) return offset;
    // The machine has no more: go on with what there is.
    arena_.give_back(*offset, size);
    arena_.shrink(committed_);
  }
  return std::nullopt;
}

// In steps, because a call reserves and clears its pages at once.
bool SegmentWriter::commit(std::uint64_t end) {
  const std::uint64_t bytes = payload_bytes();
  for (const std::uint64_t wanted : {std::min(bytes, end + kCommitStep), end}) {
    if (!segment_.commit(wire::payload_offset() + committed_, wanted - committed_)) continue;
    committed_ = wanted;
    add(stats_.allocations);
    return true;
  }
  // What is left of the machine's room is still good for pieces.
  for (std::uint64_t step = (end - committed_) / 2 / wire::kPage * wire::kPage; step >= kSmallestPiece;
       step = step / 2 / wire::kPage * wire::kPage) {
    if (segment_.commit(wire::payload_offset() + committed_, step)) committed_ += step;
  }
  return false;
}

void SegmentWriter::wait_room(std::uint32_t seen, const Deadline& deadline) {
  wire::SegmentHead& shared = head();
  shared.room_wanted.fetch_add(1);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint64_t next = release(released_ + 1).load(std::memory_order_acquire) >> 16;
  if (next != released_ + 1) futex_wait(shared.room, seen, deadline);
  shared.room_wanted.fetch_sub(1);
}

void SegmentWriter::wake_room() {
  head().room.fetch_add(1);
  futex_wake_all(head().room);
}

std::string SegmentWriter::held_text(const std::string& receiver) {
  reclaim();
  const std::uint64_t taken = head().taken.load(std::memory_order_relaxed);
  std::uint64_t waiting = 0, waiting_bytes = 0, held = 0, held_bytes = 0;
  for (const Slot& slot : slots_) {
    if (slot.number == 0) continue;
    (slot.number > taken ? waiting : held) += 1;
    (slot.number > taken ? waiting_bytes : held_bytes) += slot.size;
  }
  return "the shared segment of " + std::to_string(arena_.bytes()) + " bytes holds " + std::to_string(waiting) +
         " blocks (" + std::to_string(waiting_bytes) + " bytes) that " + receiver + " has not received, and " +
         std::to_string(held) + " (" + std::to_string(held_bytes) + " bytes) whose tensors " + receiver + " still keeps; wait longer, let go of tensors there, or raise ZMQPP_SHM_BYTES";
}

// ---- writing ----------------------------------------------------------------------------------------------------

void SegmentWriter::pin(device::Device& device) {
  if (is_pinned_) return;
  const std::uint64_t wanted = std::min<std::uint64_t>(payload_bytes_, committed_ + memory::pinnable(pinned_bytes_));
  if (wanted > committed_) commit(wanted);
  const std::uint64_t size = std::min({wanted, committed_, pinned_bytes_}) / wire::kPage * wire::kPage;
  arena_.shrink(size);
  segment_.pin(device, wire::payload_offset(), size);
  is_pinned_ = true;
  head().pinned_bytes.store(size, std::memory_order_release);
}

std::optional<SegmentWriter::Place> SegmentWriter::place(wire::EntryKind kind, std::uint64_t size) {
  // Tensors may keep whole bodies for ever: something must stay free for pieces.
  reclaim();
  if (!is_piece(kind) && size > 0 && arena_.largest() < size + 2 * kSmallestPiece) return std::nullopt;
  const auto offset = take_space(size);
  if (!offset) return std::nullopt;
  const std::uint16_t slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[slot] = {.offset = *offset, .size = size, .number = ++placed_, .is_piece = is_piece(kind)};
  pieces_ += is_piece(kind) ? 1 : 0;
  return Place{.kind = kind, .slot = slot, .offset = *offset, .size = size};
}

void SegmentWriter::fill(Place& place, PayloadReader& body, const DictMark& mark, device::Copies* copies) {
  const std::size_t before = body.copies();
  std::uint8_t* out = bytes_of(place);
  if (!checksum_ || copies != nullptr) {
    body.copy_next(out, place.size, mark.total, copies);
  } else {
    for (std::uint64_t done = 0; done < place.size; done += kCheckedStep) {
      const std::size_t step = std::min<std::uint64_t>(kCheckedStep, place.size - done);
      body.copy_next(out + done, step, step);
      place.checksum = crc32c(place.checksum, out + done, step);
    }
  }
  add(stats_.copies_out, body.copies() - before);
}

void SegmentWriter::sum_up(Place& place) const {
  if (checksum_ && place.kind != wire::EntryKind::kRemote) place.checksum = crc32c(0, bytes_of(place), place.size);
}

void SegmentWriter::publish(const Place& place, const DictMark& mark) {
  const wire::EntryView view{.offset = place.offset,
                             .size = place.size,
                             .total = mark.total,
                             .tag = mark.tag,
                             .sent_ns = now_ns(),
                             .epoch = mark.epoch,
                             .manifest_size = has_manifest(place.kind) ? mark.manifest_size : 0,
                             .checksum = place.checksum,
                             .slot = place.slot,
                             .kind = place.kind,
                             .checked = checksum_ && place.kind != wire::EntryKind::kCancel && place.kind != wire::EntryKind::kRemote};
  ++published_;
  add(stats_.bytes_sent, view.size);
  wire::write_entry(entry(published_), view, published_);
  ring_bell();
}

bool SegmentWriter::write(wire::EntryKind kind, const DictMark& mark, PayloadReader& body, std::uint64_t size) {
  std::optional<Place> room = place(kind, size);
  if (!room) return false;
  fill(*room, body, mark);
  publish(*room, mark);
  return true;
}

bool SegmentWriter::write_cancel(const DictMark& mark) {
  const auto cancel = place(wire::EntryKind::kCancel, 0);
  if (cancel) publish(*cancel, mark);
  return cancel.has_value();
}

// The fence orders the entry before the look at `attention`, as the receiver's orders its wish before its last look
// at the entry: one of the two sees the other.
std::uint32_t SegmentWriter::ring_bell() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  wire::SegmentHead& shared = head();
  const std::uint32_t attention = shared.attention.load(std::memory_order_relaxed);
  if (attention < wire::kSleeperUnit) return attention;
  shared.bell.fetch_add(1);
  futex_wake_all(shared.bell);
  add(stats_.doorbells);
  return attention;
}

// Who sleeps is woken, and who comes to sleep looks first. A relay that computes would pass it on late.
SegmentWriter::Written SegmentWriter::write_control(const ControlMark& mark, std::uint64_t after, const std::uint8_t* body,
                                                    std::size_t size) {
  if (!controls_.write(mark, after, body, size)) return Written::kNoRoom;
  add(stats_.control_sent);
  add(stats_.bytes_sent, wire::record_bytes(size));
  const std::uint32_t attention = ring_bell();
  const bool is_unseen = attention < wire::kSleeperUnit && (attention & wire::kRelays) != 0;
  return is_unseen || (attention & wire::kNudge) != 0 ? Written::kUnseen : Written::kSeen;
}

// ---- device memory ----------------------------------------------------------------------------------------------

wire::DeviceState SegmentWriter::offer_device(device::Device& device) {
  if (device_state_ != wire::DeviceState::kNone) {
    look_at_answer();
    return device_state_;
  }
  sweep_rings();  // what it takes may be there
  try {
    device_memory_ = std::make_unique<device::Exported>(device, device_ring_bytes_);
  } catch (const Error& e) {
    device_reason_ = e.detail();
    return device_state_ = wire::DeviceState::kRefused;
  }
  device_arena_.emplace(device_ring_bytes_, wire::kSlots);
  wire::SegmentHead& shared = head();
  shared.device_bytes = device_ring_bytes_;
  std::memcpy(shared.device_handle, device_memory_->handle().bytes, sizeof shared.device_handle);
  device_state_ = wire::DeviceState::kOffered;
  shared.device_state.store(static_cast<std::uint32_t>(device_state_), std::memory_order_release);
  ring_bell();  // a receiver that sleeps looks at it
  return device_state_;
}

void SegmentWriter::look_at_answer() {
  if (!device_memory_) return;
  const auto found = static_cast<wire::DeviceState>(head().device_state.load(std::memory_order_acquire));
  if (found == wire::DeviceState::kRefused) {
    if (device_state_ == wire::DeviceState::kAccepted) {
      throw Error(Code::kMalformed, "send", "shared segment: the receiver refused device memory that it had accepted");
    }
    device_reason_ = next_ + ": " + wire::read_reason(head());
    device_memory_.reset();  // no other process has it open
  }
  device_state_ = found;
}

bool SegmentWriter::fits_device(std::uint64_t bytes) const {
  return !checksum_ && device_state_ == wire::DeviceState::kAccepted && bytes <= device_arena_->bytes();
}

std::optional<SegmentWriter::Place> SegmentWriter::place_remote(const std::vector<Span>& body, const DictMark& mark) {
  reclaim();
  const std::uint64_t bytes = bytes_on_devices(body);
  const auto ring_offset = device_arena_->take(bytes);
  if (!ring_offset) return std::nullopt;
  const std::uint64_t table = count_on_devices(body) * sizeof(wire::RemotePart);
  auto placed = place(wire::EntryKind::kRemote, align_up(mark.manifest_size) + mark.total + table);
  if (!placed) {
    device_arena_->give_back(*ring_offset, bytes);
    return std::nullopt;
  }
  placed->ring_offset = slots_[placed->slot].ring_offset = *ring_offset;
  slots_[placed->slot].ring_size = bytes;
  ++remote_slots_;
  return placed;
}

// What is on the host goes into the body, as ever; what is on devices into the ring, and only its place into the table.
void SegmentWriter::fill_remote(const Place& place, const std::vector<Span>& body, const DictMark& mark, device::Copies& copies) {
  std::uint8_t* const front = bytes_of(place);
  std::memcpy(front, body.front().bytes, body.front().size);
  std::memset(front + mark.manifest_size, 0, align_up(mark.manifest_size) - mark.manifest_size);
  std::uint8_t* const payload = front + align_up(mark.manifest_size);
  std::uint8_t* table = payload + mark.total;
  std::uint64_t offset = 0, at = place.ring_offset;
  for (auto span = body.begin() + 1; span != body.end(); ++span) {
    if (span->ordinal == Span::kHost) {
      memory::copy_bytes(payload + offset, span->bytes, span->size, mark.total);
      std::memset(payload + offset + span->size, 0, align_up(span->size) - span->size);
    } else {
      copies.copy(span->ordinal, reinterpret_cast<void*>(device_memory_->address() + at), span->bytes, span->size);
      const wire::RemotePart part{.offset = offset, .size = span->size, .place = at};
      std::memcpy(table, &part, sizeof part);
      table += sizeof part;
      at += align_up(span->size);
    }
    add(stats_.copies_out);
    offset += align_up(span->size);
  }
}

void SegmentWriter::abandon() noexcept {
  if (device_memory_) device_memory_->abandon();
  device_memory_.reset();
  segment_.abandon();
}

bool SegmentWriter::take_nudge_request() {
  return (head().attention.load(std::memory_order_relaxed) & wire::kNudge) != 0;
}

}  // namespace zmqpp::engine
