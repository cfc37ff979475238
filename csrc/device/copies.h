// The copies that one half of a link has under way, on a stream of its own for each device that tensors come from.
//
// Owns: the streams. Blocks? drain, and the first copy of a device, which makes its stream. Thread: one at a time.
// Errors: kDevice. A device that has failed stays failed: its streams never end what they were given.
// Memory: whoever owns the memory on either side drains before it frees it.
#pragma once

#include <map>
#include <memory>

#include "base/deadline.h"
#include "base/event.h"
#include "device/landing.h"
#include "device/stream.h"

namespace zmqpp::device {

class Copies {
 public:
  explicit Copies(zmqpp::Event& wake) : waker_(std::make_shared<Waker>(wake)) {}
  ~Copies();
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;

  void after(const Event& ready);  // what comes later on that event's device
  void copy(Ordinal ordinal, void* to, const void* from, std::size_t size);
  LandingPtr mark();               // of what was copied since the last mark; null: nothing was
  void record(Event& event);       // when all that was copied on its device is done
  void check() const;              // throws what a device failed with
  bool drain(const Deadline& deadline) noexcept;  // false: something is still under way, or the device has failed

 private:
  struct Course {
    explicit Course(Device& device) : stream(device) {}
    Stream stream;
    bool touched = false;  // since the last mark
  };
  Course& course(Ordinal ordinal);

  const std::shared_ptr<Waker> waker_;
  bool hangs_ = false;  // a drain was in vain
  std::map<Ordinal, Course> courses_;
};

}  // namespace zmqpp::device
