// The receiver's side of a shared segment: reads entries, lends their bodies to tensors, releases what nobody uses.
//
// Owns: the mapping, which every lent block keeps alive beyond the link. Blocks? sleep only.
// Thread: take under the inbox's mutex; take_control by whoever reads the socket; take_back from whichever thread drops a tensor; the rest is safe.
// Errors: open throws kSharedMemory with the reason; take throws kMalformed, kSequence or kChecksum, once and for good.
// Trust: the writer is another process. Entries are copied before they are checked, offsets are checked against the
//   mapping, and only private memory is parsed.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/spin.h"
#include "device/peer_memory.h"
#include "engine/control_ring.h"
#include "engine/dict.h"
#include "engine/options.h"
#include "engine/stats.h"
#include "memory/pinned_slab.h"
#include "memory/receive_block.h"
#include "memory/segment.h"
#include "wire/hello.h"
#include "wire/ring.h"

namespace zmqpp::engine {

class RingReader : public memory::Lender, public std::enable_shared_from_this<RingReader> {
 public:
  RingReader(const wire::Hello& hello, std::uint64_t session, const Options& options, std::shared_ptr<Stats> stats);
  ~RingReader() override;  // closes the sender's device memory, and says so: nothing reads from it then
  RingReader(const RingReader&) = delete;
  RingReader& operator=(const RingReader&) = delete;

  void use_device(device::Device& device) { device_.store(&device); }  // dicts go there
  void pin() noexcept;  // what the sender has pinned by now, for copies to that device; slower, not wrong, without
  std::string device_reason() const;  // why the sender's device memory was refused; empty: it was not
  void use(std::shared_ptr<memory::PinnedSlab> slab);  // for what it does not lend, on its way to that device; once
  bool reads_devices() const { return opened_ready_.load(std::memory_order_acquire); }
  bool answer(wire::SegmentState state);  // kAccepted or kRefused; false: the sender has withdrawn its offer

  // What a thread waits for.
  struct Wants {
    bool dict = false;
    bool control = false;
  };

  bool has_control() const { return controls_.has_record(); }
  void leave_control() { controls_.leave(); }
  std::optional<ControlFrame> take_control(std::uint64_t seen) { return controls_.take(seen); }  // by the receiver alone

  bool ready() const;          // there is an entry to take
  bool next_is_piece() const;  // of a dict that comes in pieces
  std::optional<Dict> take();  // the next complete dict; pieces are taken as they come, so there may be none yet

  std::uint32_t bell() const { return head().bell.load(); }  // changes with every wake-up
  void stir() noexcept;                                      // wakes all that sleep, in this process
  // Until what `wants` is there, or the bell rang since `seen`; spurious returns are normal.
  bool spin(std::uint32_t seen, Wants wants) { return spin_.poll([&] { return is_there(wants) || bell() != seen; }); }
  void sleep(std::uint32_t seen, Wants wants, const Deadline& deadline);
  void waited(std::uint64_t ns) { spin_.learn(ns); }
  void want_nudge(bool wanted);  // the sender shall also send a message for what it publishes

  void take_back(std::uint64_t lease, std::size_t size) noexcept override;
  const std::uint8_t* pinned_end() const noexcept override { return pinned_end_.load(); }

 private:
  wire::SegmentHead& head() const { return *reinterpret_cast<wire::SegmentHead*>(segment_.bytes()); }
  const wire::Entry& next_entry() const;
  bool is_there(Wants wants) const { return (wants.dict && ready()) || (wants.control && has_control()); }
  const std::uint8_t* body(const wire::EntryView& view) const;
  void check_body(const wire::EntryView& view) const;
  std::optional<Dict> take_entry(const wire::EntryView& view);
  bool is_device_offered() const;
  void look_at_device();
  std::string open_device();
  void pin_front(bool is_last_chance);
  Dict take_whole(const wire::EntryView& view);
  Dict take_remote(const wire::EntryView& view);
  std::shared_ptr<memory::ReceiveBlock> lend(const wire::EntryView& view);
  void take_first(const wire::EntryView& view);
  std::optional<Dict> take_piece(const wire::EntryView& view);
  void fill_open(const wire::EntryView& view);
  bool keeps_too_much(std::size_t size) const;
  void release(std::uint16_t slot) noexcept;

  const pid_t owner_;
  const wire::Limits limits_;
  const std::size_t hold_bytes_;
  std::shared_ptr<Stats> stats_;
  memory::Segment segment_;
  ControlReader controls_;
  const bool relays_;
  const std::size_t pinned_bytes_;  // at most
  const LaneChoice lane_;
  std::atomic<const std::uint8_t*> pinned_end_{nullptr};
  std::atomic<device::Device*> device_{nullptr};
  std::shared_ptr<memory::PinnedSlab> slab_;  // set once
  std::atomic<memory::PinnedSlab*> slab_ready_{nullptr};
  std::unique_ptr<device::Opened> opened_;  // set once, under the inbox's mutex
  std::atomic<bool> device_answered_{false};
  std::atomic<bool> opened_ready_{false};
  std::string device_reason_;  // of a refusal, from when the next says so
  std::atomic<bool> device_refused_{false};
  std::mutex pin_mutex_;  // with the next
  std::atomic<bool> pin_decided_{false};
  Spin spin_;
  std::atomic<std::uint64_t> taken_{0};
  std::optional<Dict> open_;         // waits for pieces
  std::size_t open_manifest_ = 0;    // bytes of its manifest, with the gap behind it
  std::uint64_t open_filled_ = 0;    // bytes of its body that came
  std::optional<Error> broken_;

  std::mutex release_mutex_;  // guards the following
  std::uint64_t released_ = 0;
  std::array<std::atomic<std::uint64_t>, wire::kSlots> slot_bytes_{};  // of the body a lent block keeps
  std::atomic<std::size_t> lent_bytes_{0};
  std::atomic<std::size_t> lent_slots_{0};
};

}  // namespace zmqpp::engine
