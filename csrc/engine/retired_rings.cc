#include "engine/retired_rings.h"

#include <mutex>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "wire/ring.h"

namespace zmqpp::engine {
namespace {

using wire::DeviceState;

constexpr double kBurial_s = 5;

struct Retired {
  std::unique_ptr<device::Exported> memory;
  memory::Segment segment;
  Deadline burial = Deadline::never();  // of a receiver that died
};

// Nobody has it open, nor will. The dead cannot say so, but their locks end with them. What they had open ends at about the
// same time, in an order of the system's: a process that is torn down may lose its lock some hundred milliseconds earlier.
bool is_let_go(Retired& ring) {
  auto& state = reinterpret_cast<wire::SegmentHead*>(ring.segment.bytes())->device_state;
  auto offered = static_cast<std::uint32_t>(DeviceState::kOffered);
  if (state.compare_exchange_strong(offered, static_cast<std::uint32_t>(DeviceState::kWithdrawn))) return true;
  const auto found = static_cast<DeviceState>(offered);
  if (found != DeviceState::kOpening && found != DeviceState::kAccepted) return true;
  if (ring.segment.is_held()) return false;
  if (ring.burial.is_never()) ring.burial = Deadline::after(kBurial_s);
  return ring.burial.expired();
}

// Never destroyed: at the end of the process the driver frees what is left.
class Rings {
 public:
  void add(std::unique_ptr<Retired> ring) {
    const std::lock_guard lock(mutex_);
    rings_.push_back(std::move(ring));
  }

  // Freed by the caller, without the mutex.
  std::vector<std::unique_ptr<Retired>> take_free() {
    const std::lock_guard lock(mutex_);
    std::vector<std::unique_ptr<Retired>> free, kept;
    for (auto& ring : rings_) (is_let_go(*ring) ? free : kept).push_back(std::move(ring));
    rings_ = std::move(kept);
    return free;
  }

  std::size_t size() {
    const std::lock_guard lock(mutex_);
    return rings_.size();
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Retired>> rings_;
};

Rings& rings() {
  static auto* const instance = new Rings;
  return *instance;
}

}  // namespace

void retire_ring(std::unique_ptr<device::Exported> memory, memory::Segment segment) noexcept {
  segment.unpin();  // only its head is looked at
  rings().add(std::make_unique<Retired>(std::move(memory), std::move(segment)));
  sweep_rings();
}

void sweep_rings() noexcept {
  if (rings().size() > 0 && device::is_usable()) rings().take_free();
}

std::size_t count_retired_rings() { return rings().size(); }

}  // namespace zmqpp::engine
