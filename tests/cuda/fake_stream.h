// Streams and events of the fake driver: each stream is a thread that does what it is given later, in order, after a pause.
//
// Lifetime: as with CUDA, a stream that is destroyed does what it was given first; an event may be destroyed while it is pending.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

namespace fake {

// In shared memory when other processes shall see it.
struct EventWord {
  std::atomic<std::uint64_t> recorded{0};  // how often
  std::atomic<std::uint64_t> completed{0};
};

inline void nap() { std::this_thread::sleep_for(std::chrono::microseconds(20)); }

inline void await(const EventWord& event, std::uint64_t count) {
  while (event.completed.load() < count) nap();
}

class Stream {
 public:
  Stream(void* context, std::uint64_t seed, int longest_pause_us)
      : context_(context), random_(seed), pause_us_(0, longest_pause_us), thread_([this] { run(); }) {}
  ~Stream() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void* context() const { return context_; }
  void give(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
    changed_.notify_all();
  }
  bool is_capturing() const { return capturing_; }
  void capture(bool on) { capturing_ = on; }
  bool idle() {
    const std::lock_guard lock(mutex_);
    return work_.empty();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return closing_ || !work_.empty(); });
      if (work_.empty()) return;
      const std::function<void()> work = work_.front();
      lock.unlock();
      if (const int pause = pause_us_(random_)) std::this_thread::sleep_for(std::chrono::microseconds(pause));
      work();
      lock.lock();
      work_.pop_front();
    }
  }

  void* const context_;
  std::mt19937_64 random_;
  std::uniform_int_distribution<int> pause_us_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  bool closing_ = false;
  std::atomic<bool> capturing_{false};
  std::thread thread_;
};

}  // namespace fake
