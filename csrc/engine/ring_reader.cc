#include "engine/ring_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/align.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "base/process.h"
#include "memory/copy.h"
#include "wire/manifest.h"

namespace zmqpp::engine {
namespace {

constexpr std::size_t kHeldSlots = wire::kSlots / 2;

[[noreturn]] void out_of_order(const char* what) { throw Error(Code::kSequence, "receive", std::string("shared segment: ") + what); }

}  // namespace

RingReader::RingReader(const wire::Hello& hello, std::uint64_t session, const Options& options,
                       std::shared_ptr<Stats> stats)
    : owner_(current_pid()),
      limits_(options.limits),
      hold_bytes_(options.shm_hold_bytes > 0 ? std::min<std::uint64_t>(options.shm_hold_bytes, hello.segment_bytes / 4 * 3)
                                             : hello.segment_bytes / 2),
      stats_(std::move(stats)),
      segment_(memory::Segment::open(hello.segment, wire::payload_offset() + hello.segment_bytes)),
      controls_(segment_.bytes(), options.limits),
      relays_(options.relay != Relay::kNone),
      pinned_bytes_(options.pinned_bytes),
      lane_(options.lane),
      spin_(options.spin_us) {
  try {
    wire::check_segment(head(), segment_.size(), session);
  } catch (const Error& e) {
    throw Error(Code::kSharedMemory, "open", e.detail());
  }
}

// In a fork's copy nothing is closed: it is the parent's.
RingReader::~RingReader() {
  if (!opened_ || current_pid() != owner_) return;
  if (opened_->close()) {
    head().device_state.store(static_cast<std::uint32_t>(wire::DeviceState::kClosed), std::memory_order_release);
  } else {
    segment_.abandon();  // with its lock: the sender must go on taking it for open
  }
}

void RingReader::pin() noexcept {
  try {
    pin_front(false);
  } catch (const Error&) {
    // The next take says so.
  }
}

// What the sender has pinned, where nearly everything lies: what lies behind is staged by CUDA. A sender pins with its first
// tensor of a device, before it publishes that; one that has only the host's never does, and then this side chooses.
void RingReader::pin_front(bool is_last_chance) {
  device::Device* const device = device_.load();
  if (device == nullptr || pin_decided_.load()) return;
  const std::lock_guard lock(pin_mutex_);
  const std::size_t payload = segment_.size() - wire::payload_offset();
  const std::uint64_t theirs = head().pinned_bytes.load(std::memory_order_acquire);
  wire::check_pinned(theirs, payload);
  if ((theirs == 0 && !is_last_chance) || pin_decided_.exchange(true)) return;
  const std::size_t ours = theirs > 0 ? pinned_bytes_ : memory::pinnable(std::min(pinned_bytes_, payload));
  const std::size_t size = (theirs > 0 ? std::min<std::size_t>(theirs, ours) : ours) / wire::kPage * wire::kPage;
  if (size == 0) return;
  try {
    segment_.pin(*device, wire::payload_offset(), size);
    pinned_end_ = segment_.bytes() + wire::payload_offset() + size;
  } catch (const Error&) {
    // All of it is staged, then.
  }
}

void RingReader::use(std::shared_ptr<memory::PinnedSlab> slab) {
  if (slab_) return;  // somebody may be taking from it
  slab_ = std::move(slab);
  slab_ready_ = slab_.get();
}

bool RingReader::is_device_offered() const {
  return head().device_state.load(std::memory_order_acquire) == static_cast<std::uint32_t>(wire::DeviceState::kOffered);
}

// Before each dict, because the sender offers its device memory when it first has tensors there.
void RingReader::look_at_device() {
  if (!is_device_offered() || device_answered_.exchange(true)) return;  // once: opening takes its time
  wire::SegmentHead& shared = head();
  const bool held = segment_.hold();  // first: who is not seen to hold it is taken for dead, and has nothing open
  auto offered = static_cast<std::uint32_t>(wire::DeviceState::kOffered);
  if (!shared.device_state.compare_exchange_strong(offered, static_cast<std::uint32_t>(wire::DeviceState::kOpening))) return;
  device_reason_ = held ? open_device() : "the segment cannot be locked";
  const auto answer = device_reason_.empty() ? wire::DeviceState::kAccepted : wire::DeviceState::kRefused;
  wire::write_reason(shared, device_reason_);
  device_refused_.store(!device_reason_.empty(), std::memory_order_release);
  opened_ready_.store(device_reason_.empty(), std::memory_order_release);
  shared.device_state.store(static_cast<std::uint32_t>(answer), std::memory_order_release);
  shared.room.fetch_add(1);
  futex_wake_all(shared.room);  // a sender that may not go on without it
}

// Empty, or why not: then tensors come through the segment, and the sender says so where that was forbidden.
std::string RingReader::open_device() {
  device::Device* const device = device_.load();
  if (!may_use_devices(lane_)) return "it was told to use shm";
  if (device == nullptr) return "it receives to no device of CUDA";
  device::IpcMemory handle;
  std::memcpy(handle.bytes, head().device_handle, sizeof handle.bytes);
  try {
    opened_ = std::make_unique<device::Opened>(*device, handle, head().device_bytes);
  } catch (const Error& e) {
    return e.detail();
  }
  return "";
}

std::string RingReader::device_reason() const {
  return device_refused_.load(std::memory_order_acquire) ? "not cuda_ipc: " + device_reason_ : "";
}

bool RingReader::answer(wire::SegmentState state) {
  if (relays_) head().attention.fetch_or(wire::kRelays);  // first: from the answer on the sender acts on it
  auto offered = static_cast<std::uint32_t>(wire::SegmentState::kOffered);
  if (!head().state.compare_exchange_strong(offered, static_cast<std::uint32_t>(state))) return false;
  segment_.unlink_name();  // the sender may be killed before it does so itself
  return true;
}

const wire::Entry& RingReader::next_entry() const {
  const auto* entries = reinterpret_cast<const wire::Entry*>(segment_.bytes() + wire::entries_offset());
  return entries[taken_.load(std::memory_order_relaxed) % wire::kSlots];
}

bool RingReader::ready() const {
  const std::uint64_t taken = taken_.load(std::memory_order_relaxed);
  return next_entry().number.load(std::memory_order_acquire) == taken + 1;
}

bool RingReader::next_is_piece() const {
  return ready() && next_entry().kind != wire::EntryKind::kWhole && next_entry().kind != wire::EntryKind::kRemote;
}

// ---- taking -----------------------------------------------------------------------------------------------------

std::optional<Dict> RingReader::take() {
  if (broken_) throw *broken_;
  look_at_device();
  try {
    if (ready()) pin_front(true);
    while (ready()) {
      const auto view = wire::read_entry(next_entry(), segment_.size() - wire::payload_offset(), limits_);
      const std::uint64_t taken = taken_.fetch_add(1, std::memory_order_relaxed) + 1;
      head().taken.store(taken, std::memory_order_relaxed);
      std::optional<Dict> dict = take_entry(view);
      if (!dict) continue;
      const std::uint64_t now = now_ns();
      if (now > view.sent_ns) stats_->receive_ns.add(now - view.sent_ns);
      add(stats_->dicts_received);
      return dict;
    }
  } catch (const Error& e) {
    broken_ = e;
    throw;
  }
  return std::nullopt;
}

std::optional<Dict> RingReader::take_entry(const wire::EntryView& view) {
  add(stats_->bytes_received, view.size);
  switch (view.kind) {
    case wire::EntryKind::kWhole:
      if (open_) out_of_order("a dict began before the pieces of the last one were complete");
      return take_whole(view);
    case wire::EntryKind::kRemote:
      if (open_) out_of_order("a dict began before the pieces of the last one were complete");
      return take_remote(view);
    case wire::EntryKind::kFirst:
      if (open_) out_of_order("a dict began before the pieces of the last one were complete");
      take_first(view);
      return std::nullopt;
    case wire::EntryKind::kPiece: return take_piece(view);
    case wire::EntryKind::kCancel: break;
  }
  if (!open_) out_of_order("a cancel came without an incomplete dict");
  open_.reset();
  add(stats_->cancelled);
  release(view.slot);
  return std::nullopt;
}

const std::uint8_t* RingReader::body(const wire::EntryView& view) const {
  return segment_.bytes() + wire::payload_offset() + view.offset;
}

void RingReader::check_body(const wire::EntryView& view) const {
  if (!view.checked || crc32c(0, body(view), view.size) == view.checksum) return;
  throw Error(Code::kChecksum, "receive",
              "the checksum of " + std::to_string(view.size) + " bytes in the shared segment does not match");
}

Dict RingReader::take_whole(const wire::EntryView& view) {
  check_body(view);
  const std::uint8_t* in = body(view);
  Dict dict{.manifest = std::string(reinterpret_cast<const char*>(in), view.manifest_size),
            .block = nullptr, .tag = view.tag, .epoch = view.epoch};
  wire::check_manifest(dict.manifest.data(), dict.manifest.size());
  const std::size_t front = align_up(view.manifest_size);
  if (view.total == 0) {
    release(view.slot);
  } else if (keeps_too_much(view.size)) {
    dict.block = memory::make_block(slab_ready_.load(), view.total);
    memory::copy_bytes(dict.block->bytes(), in + front, view.total, view.total);
    add(stats_->copies_in);
    release(view.slot);
  } else {
    dict.block = lend(view);
  }
  return dict;
}

std::shared_ptr<memory::ReceiveBlock> RingReader::lend(const wire::EntryView& view) {
  slot_bytes_[view.slot].store(view.size, std::memory_order_relaxed);
  lent_bytes_.fetch_add(view.size, std::memory_order_relaxed);
  lent_slots_.fetch_add(1, std::memory_order_relaxed);
  add(stats_->held_bytes, view.total);
  std::uint8_t* const payload = const_cast<std::uint8_t*>(body(view)) + align_up(view.manifest_size);
  return memory::ReceiveBlock::lent(shared_from_this(), view.slot, payload, view.total);
}

// Never copied out: what is on the device goes to tensors of its own, and then nothing keeps it.
Dict RingReader::take_remote(const wire::EntryView& view) {
  if (!opened_ || view.total == 0) {
    throw Error(Code::kMalformed, "receive", "shared segment: a dict in device memory that was not agreed on");
  }
  const std::uint8_t* in = body(view);
  Dict dict{.manifest = std::string(reinterpret_cast<const char*>(in), view.manifest_size),
            .block = nullptr, .tag = view.tag, .epoch = view.epoch};
  wire::check_manifest(dict.manifest.data(), dict.manifest.size());
  const std::size_t front = align_up(view.manifest_size);
  std::vector<wire::RemotePart> parts((view.size - front - view.total) / sizeof(wire::RemotePart));
  std::memcpy(parts.data(), in + front + view.total, parts.size() * sizeof(wire::RemotePart));
  std::vector<memory::Remote> remote;
  for (const wire::RemotePart& part : parts) {
    wire::check_part(part, view.total, opened_->size());
    remote.push_back({part.offset, part.size, opened_->address() + part.place});
  }
  dict.block = lend(view);
  dict.block->set_remote(std::move(remote));
  return dict;
}

// The receiver's user may keep tensors for ever; the sender must always find room. A small tensor keeps its whole
// body, with a manifest that may be large.
bool RingReader::keeps_too_much(std::size_t size) const {
  return lent_bytes_.load(std::memory_order_relaxed) + size > hold_bytes_ ||
         lent_slots_.load(std::memory_order_relaxed) >= kHeldSlots;
}

void RingReader::take_first(const wire::EntryView& view) {
  open_ = Dict{.manifest = std::string(view.manifest_size, '\0'), .block = nullptr, .tag = view.tag, .epoch = view.epoch};
  if (view.total > 0) open_->block = memory::make_block(slab_ready_.load(), view.total);
  open_manifest_ = align_up(view.manifest_size);
  open_filled_ = 0;
  fill_open(view);
}

std::optional<Dict> RingReader::take_piece(const wire::EntryView& view) {
  if (!open_) out_of_order("a piece came without its dict");
  const std::uint64_t payload = open_->block ? open_->block->size() : 0;
  if (view.total != payload || view.tag != open_->tag || view.epoch != open_->epoch ||
      view.size > open_manifest_ + payload - open_filled_) {
    throw Error(Code::kMalformed, "receive", "shared segment: a piece does not continue its dict");
  }
  fill_open(view);
  if (open_filled_ < open_manifest_ + payload) return std::nullopt;
  wire::check_manifest(open_->manifest.data(), open_->manifest.size());
  return std::exchange(open_, std::nullopt);
}

// Of the body's bytes, some may belong to the manifest, some to the gap behind it, the rest to the payload.
void RingReader::fill_open(const wire::EntryView& view) {
  check_body(view);
  const std::uint8_t* in = body(view);
  std::uint64_t left = view.size;
  if (open_filled_ < open_manifest_) {
    const std::uint64_t step = std::min(left, open_manifest_ - open_filled_);
    const std::uint64_t text = open_->manifest.size();
    if (open_filled_ < text) std::memcpy(open_->manifest.data() + open_filled_, in, std::min(step, text - open_filled_));
    open_filled_ += step;
    in += step;
    left -= step;
  }
  if (left > 0) {
    memory::copy_bytes(open_->block->bytes() + (open_filled_ - open_manifest_), in, left, view.total);
    add(stats_->copies_in);
    open_filled_ += left;
  }
  add(stats_->chunks_received);
  release(view.slot);
}

// ---- releasing --------------------------------------------------------------------------------------------------

void RingReader::take_back(std::uint64_t lease, std::size_t size) noexcept {
  if (current_pid() != owner_) return;  // a fork's copy of the tensor died; the tensor itself lives
  lent_bytes_.fetch_sub(slot_bytes_[lease].load(std::memory_order_relaxed), std::memory_order_relaxed);
  lent_slots_.fetch_sub(1, std::memory_order_relaxed);
  subtract(stats_->held_bytes, size);
  release(static_cast<std::uint16_t>(lease));
}

void RingReader::release(std::uint16_t slot) noexcept {
  wire::SegmentHead& shared = head();
  {
    const std::lock_guard lock(release_mutex_);
    auto* releases = reinterpret_cast<wire::Release*>(segment_.bytes() + wire::releases_offset());
    const std::uint64_t number = ++released_;
    releases[(number - 1) % wire::kSlots].store(number << 16 | slot, std::memory_order_release);
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (shared.room_wanted.load(std::memory_order_relaxed) == 0) return;
  shared.room.fetch_add(1);
  futex_wake_all(shared.room);
}

// ---- waiting ----------------------------------------------------------------------------------------------------

void RingReader::stir() noexcept {
  head().bell.fetch_add(1);
  futex_wake_all(head().bell);
}

// The fences order the look behind what tells the sender of this thread: either side sees what the other did.
void RingReader::sleep(std::uint32_t seen, Wants wants, const Deadline& deadline) {
  wire::SegmentHead& shared = head();
  shared.attention.fetch_add(wire::kSleeperUnit);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // Whatever an odd sender offers after the answer.
  const bool asked = wants.dict && is_device_offered() && !device_answered_.load();
  if (!is_there(wants) && !asked) futex_wait(shared.bell, seen, deadline);
  shared.attention.fetch_sub(wire::kSleeperUnit);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void RingReader::want_nudge(bool wanted) {
  if (wanted) {
    head().attention.fetch_or(wire::kNudge);
  } else {
    head().attention.fetch_and(~wire::kNudge);
  }
}

}  // namespace zmqpp::engine
