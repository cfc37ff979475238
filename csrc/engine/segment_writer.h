// The sender's side of a shared segment: places bodies in it, publishes entries, and takes released slots back. Between the
// two a body is filled, at once, or by a device that writes into the segment by itself.
//
// Owns: the segment, its name until the receiver answered, and the list of what is where, in private memory.
// Blocks? wait_room only. Thread: one at a time (SharedLane's mutex), except state, withdraw and wait_room; control messages
//   have an order, and a mutex, of their own.
// Errors: kSharedMemory when opening; kPinned; kMalformed when the receiver releases what it never got.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "device/peer_memory.h"
#include "engine/control_ring.h"
#include "engine/options.h"
#include "engine/outgoing.h"
#include "engine/stats.h"
#include "memory/arena.h"
#include "memory/segment.h"
#include "wire/ring.h"

namespace zmqpp::engine {

// What all entries of one dict carry.
struct DictMark {
  std::uint64_t total = 0;
  std::uint64_t tag = 0;
  std::uint32_t epoch = 0;
  std::uint32_t manifest_size = 0;
};

class SegmentWriter {
 public:
  // Where a body lies, or will. Published in the order in which they were made.
  struct Place {
    wire::EntryKind kind = wire::EntryKind::kWhole;
    std::uint16_t slot = 0;
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    std::uint32_t checksum = 0;
    std::uint64_t ring_offset = 0;  // kRemote: where in the device memory its tensors are
  };

  SegmentWriter(std::uint64_t session, const Options& options, Stats& stats);
  ~SegmentWriter();  // the device memory is freed when the receiver has closed it: retired_rings.h
  SegmentWriter(const SegmentWriter&) = delete;
  SegmentWriter& operator=(const SegmentWriter&) = delete;

  const std::string& name() const { return segment_.name(); }
  std::uint64_t payload_bytes() const { return payload_bytes_; }
  wire::SegmentState state() const;
  bool withdraw();        // false: the receiver was faster
  void settled() { segment_.unlink_name(); }

  bool fits_whole(std::uint64_t size) const;  // else the dict goes in pieces
  std::uint64_t piece_size() const;
  std::uint64_t room_for_piece();             // after taking back what was released
  bool all_taken() const;                     // the receiver holds what is missing, and nothing waits for it

  void pin(device::Device& device);  // what devices write into; from then on no body lies elsewhere

  // Device memory that the receiver may copy from: made and offered by the first call, freed by the first that finds it refused.
  wire::DeviceState offer_device(device::Device& device);  // how things stand now
  const std::string& device_reason() const { return device_reason_; }  // why it was refused
  bool fits_device(std::uint64_t bytes) const;  // else tensors go through the host's memory
  bool holds_device_memory() const { return remote_slots_ > 0; }       // that the receiver has not read yet
  void reclaim();                               // takes back what the receiver released

  std::optional<Place> place(wire::EntryKind kind, std::uint64_t size);  // empty: no room, nothing changed
  std::optional<Place> place_remote(const std::vector<Span>& body, const DictMark& mark);
  void fill_remote(const Place& place, const std::vector<Span>& body, const DictMark& mark, device::Copies& copies);
  void fill(Place& place, PayloadReader& body, const DictMark& mark, device::Copies* copies = nullptr);
  void sum_up(Place& place) const;  // what devices filled, once it has landed
  void publish(const Place& place, const DictMark& mark);
  // All three at once, for what is on the host. False: no room, nothing changed.
  bool write(wire::EntryKind kind, const DictMark& mark, PayloadReader& body, std::uint64_t size);
  bool write_cancel(const DictMark& mark);

  // A control message, beside everything else. The receiver may be too busy to see it: then it wants a nudge.
  enum class Written { kNoRoom, kSeen, kUnseen };
  Written write_control(const ControlMark& mark, std::uint64_t after, const std::uint8_t* body, std::size_t size);
  // A device that no longer answers may still write into the segment, and into its own memory: neither is ever given back.
  void abandon() noexcept;

  std::uint32_t room() const { return head().room.load(); }
  void wait_room(std::uint32_t seen, const Deadline& deadline);  // until something was released since `seen`, or spuriously
  void wake_room();                           // those in wait_room return
  bool take_nudge_request();                  // the receiver wants a message, once for what was published since
  std::string held_text(const std::string& receiver);

 private:
  struct Slot {
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    std::uint64_t number = 0;  // of its entry; 0: free
    bool is_piece = false;
    std::uint64_t ring_offset = 0;
    std::uint64_t ring_size = 0;  // 0: nothing is on a device
  };

  wire::SegmentHead& head() const { return *reinterpret_cast<wire::SegmentHead*>(segment_.bytes()); }
  wire::Entry& entry(std::uint64_t number) const;
  wire::Release& release(std::uint64_t number) const;
  std::optional<std::uint64_t> take_space(std::uint64_t size);
  bool commit(std::uint64_t end);
  std::uint8_t* bytes_of(const Place& place) const { return segment_.bytes() + wire::payload_offset() + place.offset; }
  std::uint32_t ring_bell();  // what the receiver wants to hear
  void look_at_answer();

  const bool checksum_;
  const std::uint64_t pinned_bytes_;   // at most, once pinned
  const std::uint64_t payload_bytes_;  // not from the head: the receiver can write there
  Stats& stats_;
  memory::Segment segment_;
  ControlWriter controls_;
  std::uint64_t committed_;  // bytes of the payload area that are backed by memory
  memory::Arena arena_;
  std::vector<Slot> slots_;
  std::vector<std::uint16_t> free_slots_;
  std::size_t pieces_ = 0;  // that the receiver has not released
  std::uint64_t placed_ = 0;
  std::uint64_t published_ = 0;
  bool is_pinned_ = false;
  const std::string next_;
  const std::size_t device_ring_bytes_;
  wire::DeviceState device_state_ = wire::DeviceState::kNone;  // as offer_device last found it
  std::string device_reason_;
  std::unique_ptr<device::Exported> device_memory_;
  std::optional<memory::Arena> device_arena_;
  std::size_t remote_slots_ = 0;
  std::atomic<std::uint64_t> released_{0};  // read without the mutex by wait_room
};

}  // namespace zmqpp::engine
