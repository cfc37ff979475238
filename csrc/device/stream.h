// A stream for copies beside the caller's computing, and the events that order the two.
//
// Owns: the stream; each event. Blocks? never, but for ~Stream where CUDA lets what it was given finish.
// Thread: a Stream and an Event: one at a time. Errors: kDevice. The destructors swallow: a driver that is going down says no.
// Order: copies are done in the order they are given; after(event) holds back what comes later; record marks what came before.
#pragma once

#include <cstddef>

#include "device/device.h"

namespace zmqpp::device {

// A point in a stream. Reusable: record moves it.
class Event {
 public:
  explicit Event(Device& device);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&&) = delete;

  void record(StreamHandle stream);  // of this device; the caller's own, for example
  bool is_done() const;              // also before the first record
  EventHandle handle() const { return handle_; }
  Device& device() const { return *device_; }

 private:
  Device* device_;
  EventHandle handle_ = nullptr;
};

class Stream {
 public:
  explicit Stream(Device& device);  // as urgent as CUDA allows: a copy that waits holds up another stage
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device& device() const { return device_; }
  StreamHandle handle() const { return handle_; }
  void after(const Event& event);
  void copy(void* to, const void* from, std::size_t size);  // host memory must be pinned, or this waits for it
  void record(Event& event) { event.record(handle_); }
  void call(HostFunction function, void* data);  // on a thread of the driver's, after what was given before; no CUDA in it
  bool is_done() const;                          // with all that was given

 private:
  Device& device_;
  StreamHandle handle_ = nullptr;
};

// The caller's stream, which may be of any device, waits for `event`; the caller does not.
void hold_back(Device& device, StreamHandle stream, const Event& event);

// Whether what is given to `stream` becomes part of a CUDA graph instead of being done.
bool is_capturing(Device& device, StreamHandle stream);

}  // namespace zmqpp::device
