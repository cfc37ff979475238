// A point in time until which an operation may wait. Every wait in the engine takes one.
//
// Owns: nothing. Blocks? never. Thread: a value. Errors: none.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>

namespace zmqpp {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline never() { return Deadline(Clock::time_point::max()); }

  // Seconds beyond a century, infinity and NaN mean `never`: adding them would overflow the clock.
  static Deadline after(double seconds) {
    constexpr double kCentury_s = 3.2e9;
    if (!(seconds < kCentury_s)) return never();
    const auto wait = std::chrono::duration<double>(std::max(0.0, seconds));
    return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(wait));
  }

  bool is_never() const { return at_ == Clock::time_point::max(); }
  bool expired() const { return !is_never() && Clock::now() >= at_; }
  Clock::time_point at() const { return at_; }

  // Rounded up, so that a poll which took this long leaves the deadline behind it; at most a minute at a time.
  long remaining_ms() const {
    constexpr long kMinute_ms = 60'000;
    if (is_never()) return kMinute_ms;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()).count();
    return std::clamp<long>(left, 0, kMinute_ms);
  }

  Deadline sooner(const Deadline& other) const { return at_ < other.at_ ? *this : other; }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

}  // namespace zmqpp
