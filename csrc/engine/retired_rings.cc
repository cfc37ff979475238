#include "engine/retired_rings.h"

#include <mutex>
#include <utility>
#include <vector>

#include "wire/ring.h"

namespace zmqpp::engine {
namespace {

using wire::DeviceState;

struct Retired {
  std::unique_ptr<device::Exported> memory;
  memory::Segment segment;
};

// Nobody has it open, nor will. The dead cannot say so, but their locks end with them, after what they had open.
bool is_let_go(const memory::Segment& segment) {
  auto& state = reinterpret_cast<wire::SegmentHead*>(segment.bytes())->device_state;
  auto offered = static_cast<std::uint32_t>(DeviceState::kOffered);
  if (state.compare_exchange_strong(offered, static_cast<std::uint32_t>(DeviceState::kWithdrawn))) return true;
  const auto found = static_cast<DeviceState>(offered);
  return (found != DeviceState::kOpening && found != DeviceState::kAccepted) || !segment.is_held();
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
    for (auto& ring : rings_) (is_let_go(ring->segment) ? free : kept).push_back(std::move(ring));
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
