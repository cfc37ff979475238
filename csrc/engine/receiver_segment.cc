// The receiving half's part of a shared segment: which lane it is to be, and the control messages that come there.
#include <utility>

#include "engine/receiver.h"
#include "memory/segment.h"

namespace zmqpp::engine {
namespace {

constexpr char kOtherHost[] = "another host";
constexpr char kNotWanted[] = "this side was told to use the socket";

}  // namespace

// ---- the lane ---------------------------------------------------------------------------------------------------

void Receiver::choose_lane(const wire::Hello& hello) {
  const std::string reason = open_ring(hello);
  pin_arrivals();
  if (!reason.empty() && must_share(options_.lane)) {
    throw Error(Code::kSharedMemory, "receive", std::string("lane ") + (options_.lane == LaneChoice::kDevice ? "cuda_ipc" : "shm") + " was asked for: " + reason);
  }
  const std::lock_guard lock(mutex_);
  lane_reason_ = options_.lane == LaneChoice::kSocket ? "" : reason;
  lane_ = reason.empty() ? Lane::kShared : Lane::kSocket;
}

// The sender learns of it from the segment itself, which is the only way back to it.
std::string Receiver::open_ring(const wire::Hello& hello) {
  if (hello.segment_bytes == 0) return "the sender offers none: " + hello.no_segment;
  if (hello.boot_id != memory::boot_id()) return kOtherHost;
  constexpr std::uint64_t kMost = std::uint64_t{1} << 40;
  if (hello.segment_bytes > kMost) return "the sender's segment has an impossible size";
  try {
    const auto ring = std::make_shared<RingReader>(hello, assembly_.session(), options_, shared_stats_);
    if (options_.lane == LaneChoice::kSocket) {
      ring->answer(wire::SegmentState::kRefused);
      return kNotWanted;
    }
    if (device_ >= 0) ring->use_device(device::Device::of(device_));
    // Before the memory is pinned: the sender does not wait long.
    if (!ring->answer(wire::SegmentState::kAccepted)) return "the sender did not wait for it";
    {
      const std::lock_guard lock(mutex_);
      ring_ = ring;
    }
    inbox_.attach(ring, who());
    return "";
  } catch (const Error& e) {
    return options_.lane == LaneChoice::kSocket ? kNotWanted : e.detail();
  }
}

// ---- control messages -------------------------------------------------------------------------------------------

bool Receiver::read_controls() noexcept {
  const std::lock_guard reading(reading_);
  if (finished_ || broken_) return false;
  try {
    return drain_controls();
  } catch (const Error& e) {
    broken_ = e;
  } catch (const std::exception& e) {
    broken_ = Error(Code::kResource, "receive", e.what());
  }
  wake_.signal();
  return false;
}

// What lies in the shared segment, as far as its turn has come. True: something did.
bool Receiver::drain_controls() {
  bool any = false;
  while (ring_) {
    if (!inbox_.has_control_room()) {
      ring_->leave_control();  // whoever makes room wakes the receiver thread
      break;
    }
    std::optional<ControlFrame> next = ring_->take_control(socket_controls_);
    if (!next) break;
    any = true;
    add(stats_.bytes_received, wire::record_bytes(next->head.body_size));
    take_control(next->head, std::move(next->frame));
  }
  return any;
}

// ---- devices ----------------------------------------------------------------------------------------------------

void Receiver::use_device(device::Ordinal ordinal) {
  const std::lock_guard reading(reading_);
  if (device_ == ordinal) return;
  const device::Ordinal before = std::exchange(device_, ordinal);
  try {
    if (lane_ != Lane::kUndecided) pin_arrivals();
  } catch (...) {
    device_ = before;  // the next call tries again
    throw;
  }
}

// What comes for a device lies in pinned memory until the device has it.
void Receiver::pin_arrivals() {
  if (device_ < 0) return;
  device::Device& device = device::Device::of(device_);
  const auto slab = [&] { return std::make_shared<memory::PinnedSlab>(device, options_.pinned_bytes); };
  if (!ring_) return assembly_.use(slab());
  ring_->use_device(device);
  ring_->pin();
  try {
    ring_->use(slab());
  } catch (const Error&) {
    // What the ring does not lend is staged by CUDA, then.
  }
}

}  // namespace zmqpp::engine
