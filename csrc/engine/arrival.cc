#include "engine/arrival.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"

namespace zmqpp::engine {
namespace {

constexpr std::chrono::microseconds kReadPoll{50};

using memory::Lender;
using memory::ReceiveBlock;

// Lenders whose blocks devices have read. Never destroyed: the driver's threads may outlive static destructors.
class Graveyard {
 public:
  void bury(std::shared_ptr<Lender> lender) {
    const std::lock_guard lock(mutex_);
    lenders_.push_back(std::move(lender));
  }

  std::vector<std::shared_ptr<Lender>> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(lenders_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<Lender>> lenders_;
};

Graveyard& graveyard() {
  static auto* const instance = new Graveyard;
  return *instance;
}

std::atomic<int> departing_count{0};

// What the device still reads.
struct Departing {
  Departing(std::shared_ptr<ReceiveBlock> of, std::shared_ptr<Lender> from) : block(std::move(of)), lender(std::move(from)) {
    departing_count.fetch_add(1, std::memory_order_relaxed);
  }
  ~Departing() { departing_count.fetch_sub(1, std::memory_order_release); }
  Departing(const Departing&) = delete;
  Departing& operator=(const Departing&) = delete;
  std::shared_ptr<ReceiveBlock> block;
  std::shared_ptr<Lender> lender;
};

void on_read(void* data) {
  const std::unique_ptr<Departing> departing(static_cast<Departing*>(data));
  departing->block.reset();  // its memory can be used again at once
  if (departing->lender) graveyard().bury(std::move(departing->lender));  // the last of it may be unmapped, not here
}

void copy(device::StreamHandle stream, void* to, const void* from, std::size_t size) {
  const device::Result result = device::driver()->copy(reinterpret_cast<device::Address>(to),
                                                       reinterpret_cast<device::Address>(from), size, stream);
  device::check(result, "receive", "a copy of " + std::to_string(size) + " bytes to a device");
}

// On the sender's device, from where it is copied without coming to the host.
const memory::Remote* remote_of(const ReceiveBlock& block, const Target& target) {
  for (const memory::Remote& part : block.remote()) {
    if (part.offset == target.offset && part.size >= target.size) return &part;
  }
  return nullptr;
}

// One copy may not begin in pinned memory and end elsewhere.
void copy_part(const ReceiveBlock& block, const Target& target, device::StreamHandle stream) {
  if (const memory::Remote* part = remote_of(block, target)) {
    return copy(stream, target.memory, reinterpret_cast<const void*>(part->address), target.size);
  }
  const std::uint8_t* from = block.bytes() + target.offset;
  const std::uint8_t* end = block.lender() ? block.lender()->pinned_end() : nullptr;
  const std::size_t pinned = end > from ? std::min<std::size_t>(target.size, static_cast<std::size_t>(end - from)) : 0;
  if (pinned > 0) copy(stream, target.memory, from, pinned);
  if (pinned < target.size) copy(stream, static_cast<std::uint8_t*>(target.memory) + pinned, from + pinned, target.size - pinned);
}

void check_targets(const ReceiveBlock& block, const std::vector<Target>& targets) {
  for (const Target& target : targets) {
    if (target.offset > block.size() || target.size > block.size() - target.offset) {
      throw Error(Code::kMalformed, "receive", "a tensor outside its block");
    }
  }
}

void refuse_capture(device::Device& device, device::StreamHandle stream) {
  if (!device::is_capturing(device, stream)) return;
  throw Error(Code::kUnsupported, "receive",
              "the current stream captures a CUDA graph, which cannot hold a receive; receive before or after the capture");
}

}  // namespace

Arrival::Arrival(device::Device& on, std::shared_ptr<ReceiveBlock> block, device::StreamHandle stream)
    : on_(on), block_(std::move(block)), stream_(stream), arrived_(on) {}

std::shared_ptr<Arrival> Arrival::start(const std::shared_ptr<ReceiveBlock>& block, const std::vector<Target>& targets,
                                        device::Ordinal ordinal, device::StreamHandle arrivals) {
  sweep_arrivals();
  check_targets(*block, targets);
  device::Device& on = device::Device::of(ordinal);
  refuse_capture(on, arrivals);  // torch hands its streams out in turn: a user may have the same one
  const std::shared_ptr<Arrival> arrival(new Arrival(on, block, arrivals));
  const device::Current guard(on);
  for (const Target& target : targets) copy_part(*block, target, arrivals);
  return arrival;
}

// A device that does not even take the call may still read the block: that is never used again.
Arrival::~Arrival() {
  try {
    if (block_ && device::is_usable()) let_go();
  } catch (const Error&) {
  }
  if (block_) new std::shared_ptr<ReceiveBlock>(std::move(block_));
}

void Arrival::finish() {
  arrived_.record(stream_);  // before the call: the caller's stream shall not wait for a thread
  let_go();
}

void Arrival::let_go() {
  const device::Current guard(on_);
  auto departing = std::make_unique<Departing>(block_, block_->lender());
  device::check(device::driver()->launch_host(stream_, on_read, departing.get()), "receive", "a call after a copy");
  departing.release();  // on_read has it now
  block_.reset();
}

void Arrival::hold_back(device::StreamHandle current) const {
  refuse_capture(on_, current);
  device::hold_back(on_, current, arrived_);
}

bool Arrival::is_over() const { return !block_ && arrived_.is_done(); }

std::shared_ptr<Arrival> start_arrival(const std::shared_ptr<ReceiveBlock>& block, const std::vector<Target>& targets,
                                       device::Ordinal ordinal, device::StreamHandle arrivals, device::StreamHandle current) {
  refuse_capture(device::Device::of(ordinal), current);
  std::shared_ptr<Arrival> arrival = Arrival::start(block, targets, ordinal, arrivals);
  arrival->finish();
  arrival->hold_back(current);
  return arrival;
}

bool await_arrivals(const Deadline& deadline) noexcept {
  while (departing_count.load(std::memory_order_acquire) > 0) {
    if (deadline.expired()) return false;
    std::this_thread::sleep_for(kReadPoll);
  }
  return true;
}

void sweep_arrivals() { graveyard().take(); }

}  // namespace zmqpp::engine
