// Dicts on their way through a shared segment: what fits is written at once by the caller's own thread; what does not
// waits here, and the sender thread writes it when the receiver has released room. Tensors on devices are written by these
// themselves, and published when that has landed.
//
// Owns: the writer, the waiting items. Blocks? wait_room; close, until copies that are under way have landed, and nobody else
//   meanwhile; the first pin. Thread: all safe.
// Order: items leave in the order they came; try_send refuses while any waits.
// Errors: what the writer throws (the link fails then); a late item's ticket gets kPoolTimeout, the link goes on.
// Memory: a device reads source tensors and writes into segment and ring until its copies have landed. close waits for that, up
//   to 30 s; a device that has hung or failed may go on for ever. Then nothing that it knows is given back while the process
//   lives: the segment stays mapped and registered, the device memory allocated, and the tickets are `abandoned`, for which
//   the owner of the tensors keeps these (Link in zmqpp/transport.py). The streams and events are the driver's to end.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "device/copies.h"
#include "engine/budget.h"
#include "engine/outgoing.h"
#include "engine/segment_writer.h"

namespace zmqpp::engine {

class SharedLane {
 public:
  enum class Progress { kIdle, kNoRoom, kLanding };

  // `wake` is signalled when copies have landed.
  SharedLane(std::uint64_t session, const Options& options, Budget& budget, Stats& stats, Event& wake);

  void pin(device::Device& device);
  SegmentWriter& writer() { return *writer_; }  // the sender thread, until give_up and close
  void give_up() noexcept;                      // the receiver will not read it: nothing keeps memory for it

  // `body`: manifest, then payload. False: something waits in front, there is no room, or another thread is writing.
  bool try_send(const std::vector<Span>& body, const DictMark& mark);
  void push(Outgoing item);
  // A control message: passes everything that is queued here. `after`: control messages that the socket took before.
  SegmentWriter::Written try_control(const ControlMark& mark, std::uint64_t after, const std::uint8_t* body, std::size_t size);

  Progress pump();          // writes what there is room for, publishes what has landed
  void try_pump();          // unless another thread is about it
  bool idle() const;
  bool holds_device_memory() const;  // that the receiver has not read yet: this side must not leave
  Lane lane() const { return went_remote_ ? Lane::kDevice : Lane::kShared; }
  std::string device_reason() const;  // why tensors do not go from device to device; empty: they do, or none came. Never waits
  bool expire();            // true: something was removed
  Deadline soonest() const;
  std::uint32_t room() const { return writer_->room(); }
  void wait_room(std::uint32_t seen, const Deadline& deadline) { writer_->wait_room(seen, deadline); }
  void wake();
  void ask_nudge() { nudge_asked_ = true; }
  bool owes_nudge();        // the next take_nudge says yes
  bool take_nudge();        // the receiver shall be told by a message
  std::string held_text();
  void close(const Error& reason) noexcept;  // what waits gets `reason`; the segment is unmapped. The sender thread, once

 private:
  struct Current {
    Outgoing item;
    std::vector<Span> body;
    DictMark mark;
    PayloadReader reader;
    std::uint64_t left;
    bool started = false;
    explicit Current(Outgoing from);
    Current(const Current&) = delete;  // `reader` points into `body`
  };

  // A body that is in its place, or will be.
  struct Begun {
    SegmentWriter::Place place;
    DictMark mark;
    device::LandingPtr landing;
    std::optional<Outgoing> item;  // with the last one of a dict
  };

  void end_controls() noexcept;
  Progress pump_locked();
  bool write_current();
  bool is_device_decided() const;
  bool write_whole();
  void begin_remote(const SegmentWriter::Place& place);
  bool write_pieces();
  void begin_device_dict();
  void begin(SegmentWriter::Place place);
  void end_current();
  void publish_landed();
  void finish(Outgoing& item);
  void fail_late();
  template <typename Items>
  void fail_all(Items& items, const Error& reason);
  void fail_one(Outgoing& item, const Error& reason, bool still_read = false);
  bool is_starved();

  const Options options_;
  Budget& budget_;
  Stats& stats_;
  std::mutex control_mutex_;  // control messages never wait for the copying of tensors; guards the next
  SegmentWriter* control_writer_ = nullptr;
  std::atomic<bool> nudge_asked_{false};
  mutable std::mutex mutex_;  // guards the following
  std::unique_ptr<SegmentWriter> writer_;  // until close: without it nobody but close touches `copies_`
  std::deque<Outgoing> queue_;
  std::optional<Current> current_;
  device::Copies copies_;
  std::deque<Begun> begun_;    // in the order they will be published
  std::vector<Outgoing> late_;  // past their deadline, but a device may still read from them
  std::optional<DictMark> cancel_;  // of a dict cut off half-way, until there is a slot to say so
  Deadline patience_ = Deadline::never();
  bool nudge_ = false;
  wire::DeviceState device_state_ = wire::DeviceState::kNone;  // of the writer's device memory, before the latest dict
  std::atomic<bool> went_remote_{false};  // a dict has taken the way from device to device
  mutable std::mutex reason_mutex_;       // guards the next; held for no longer than a copy of it takes
  std::string device_reason_;
};

}  // namespace zmqpp::engine
