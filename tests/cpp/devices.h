// Tensors on the fake driver's devices (tests/cuda/fake_driver.cc), and dicts of them. All that these tests know of csrc/device.
#pragma once

#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "device/stream.h"
#include "engine/arrival.h"
#include "links.h"

namespace devices {

using namespace links;  // NOLINT: tests

// What the fake driver has that CUDA has not.
template <typename Function>
Function fake(const char* name) {
  const auto found = reinterpret_cast<Function>(::dlsym(::dlopen(std::getenv("ZMQPP_CUDA_LIBRARY"), RTLD_NOW), name));
  CHECK(found != nullptr);
  return found;
}

// How many pieces of device memory this process has: files of the fake driver.
inline int device_memories() {
  DIR* folder = ::opendir("/proc/self/fd");
  int count = 0;
  while (const dirent* entry = ::readdir(folder)) {
    char target[256] = "";
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (::readlink(path.c_str(), target, sizeof target - 1) > 0) count += std::string(target).find("fake-cuda") != std::string::npos;
  }
  ::closedir(folder);
  return count;
}

class Memory {
 public:
  Memory(device::Ordinal ordinal, std::size_t size) : device_(device::Device::of(ordinal)), size_(size) {
    const device::Current current(device_);
    device::check(device::driver()->memory_allocate(&address_, size), "open", "memory");
  }
  Memory(Memory&& other) noexcept : device_(other.device_), size_(other.size_), address_(std::exchange(other.address_, 0)) {}
  ~Memory() {
    if (address_ == 0) return;
    const device::Current current(device_, std::nothrow);
    device::driver()->memory_free(address_);
  }

  device::Ordinal ordinal() const { return device_.ordinal(); }
  std::uint8_t* bytes() const { return reinterpret_cast<std::uint8_t*>(address_); }
  std::size_t size() const { return size_; }
  Span span() const { return {bytes(), size_, ordinal()}; }

 private:
  device::Device& device_;
  std::size_t size_;
  device::Address address_ = 0;
};

// What computes: a stream that the tensors of one device are written and read on, late.
class Compute {
 public:
  explicit Compute(device::Ordinal ordinal) : stream_(device::Device::of(ordinal)) {}

  device::StreamHandle handle() const { return stream_.handle(); }
  device::Stream& stream() { return stream_; }
  device::Ordinal ordinal() const { return stream_.device().ordinal(); }

  // Pageable sources must stay until finish().
  void write(const Memory& memory, const std::vector<std::uint8_t>& bytes) { stream_.copy(memory.bytes(), bytes.data(), bytes.size()); }
  std::vector<std::uint8_t> read(const Memory& memory, std::size_t size) {
    std::vector<std::uint8_t> out(size);
    stream_.copy(out.data(), memory.bytes(), size);
    finish();
    return out;
  }
  void finish() {
    const Deadline deadline = Deadline::after(kLong_s);
    while (!stream_.is_done()) {
      CHECK(!deadline.expired());
      std::this_thread::yield();
    }
  }

 private:
  device::Stream stream_;
};

// A manifest for `sizes`, as Content's.
inline std::string manifest_of(const std::vector<std::size_t>& sizes) {
  std::string text = "\x92\xdc";
  const auto append = [&](std::uint64_t value, int width) {
    while (width-- > 0) text += static_cast<char>(value >> (8 * width));
  };
  append(sizes.size(), 2);
  for (const std::size_t size : sizes) {
    text += '\xcf';
    append(size, 8);
  }
  return text + "\x91\x01";
}

inline SendTicketPtr send(Link& link, const std::vector<Span>& payload, const Flight::Streams& streams, std::uint64_t tag,
                          double deadline_s = kLong_s) {
  std::vector<std::size_t> sizes;
  for (const Span& span : payload) sizes.push_back(span.size);
  const std::string manifest = manifest_of(sizes);
  std::vector<Span> body{span_of(manifest)};
  body.insert(body.end(), payload.begin(), payload.end());
  const FlightPtr flight = is_on_device(body) ? Flight::begin(streams) : nullptr;
  if (!link.reserve(link.reservation(body), Deadline::after(kLong_s))) throw link.queue_timeout(kLong_s);
  return link.send_dict(body, {.tag = tag, .deadline = Deadline::after(deadline_s), .flight = flight});
}

inline Options device_options(const std::string& bind, const std::string& connect, const std::string& scheme, int device) {
  Options o = options(bind, connect, lane_of(scheme));
  o.device = device;
  o.shm_bytes = 2u << 20;
  o.pinned_bytes = 1u << 20;
  o.pinned_pool_bytes = 0;  // so that there are more chunks than places for them
  return o;
}

// What a tag stands for.
inline std::vector<std::size_t> sizes_of(std::uint64_t tag) {
  pattern::Random random(tag ^ (check::seed() << 48));
  std::vector<std::size_t> sizes(1 + random.below(4));
  for (std::size_t& size : sizes) size = 1 + random.below(random.one_in(4) ? 900'000 : 100'000);
  return sizes;
}

// As a caching allocator does: what is being read stays until nothing reads it.
class Unsettled {
 public:
  void add(SendTicketPtr ticket) { tickets_.push_back(std::move(ticket)); }
  ~Unsettled() {
    const Deadline deadline = Deadline::after(kLong_s);
    for (const SendTicketPtr& ticket : tickets_) {
      while (!ticket->is_settled()) CHECK(!deadline.expired());
    }
  }

 private:
  std::vector<SendTicketPtr> tickets_;
};

// Writes, sends, waits on its stream, and writes over it: nothing of it on the host but the order of calls.
inline void send_from(Link& link, int ordinal, int dicts) {
  std::vector<std::vector<std::uint8_t>> sources;  // of the writes, until the stream is done
  std::vector<Memory> tensors;
  for (int i = 0; i < 4; ++i) tensors.emplace_back(ordinal, 1u << 20);
  Compute compute(ordinal);
  Unsettled tickets;  // the first to end: until then tensors are read
  for (int tag = 0; tag < dicts; ++tag) {
    std::vector<Span> payload;
    const std::vector<std::size_t> sizes = sizes_of(tag);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      compute.write(tensors[i], sources.emplace_back(pattern::bytes((tag << 8) + i, sizes[i])));
      payload.push_back({tensors[i].bytes(), sizes[i], ordinal});
    }
    const SendTicketPtr ticket = send(link, payload, {{ordinal, compute.handle()}}, tag);
    tickets.add(ticket);
    CHECK(ticket->wait_started(Deadline::after(kLong_s)));
    ticket->flight()->hold_back(ordinal, compute.handle());
    const auto& junk = sources.emplace_back(1u << 20, 0xee);
    for (const Memory& tensor : tensors) compute.write(tensor, junk);
  }
  compute.finish();
}

// Takes several before it looks at the first: what the device has not read yet must not be written again meanwhile.
class Consumer {
 public:
  explicit Consumer(int ordinal) : compute_(ordinal), arrivals_(ordinal) {
    for (std::uint64_t i = 0; i < kAhead * 4; ++i) tensors_.emplace_back(ordinal, 1u << 20);
  }

  void take(Link& link, std::uint64_t tag) {
    const std::optional<Dict> dict = receive(link);
    CHECK(dict);
    CHECK_EQUAL(dict->tag, tag);
    std::vector<Target> targets;
    std::size_t at = 0;
    for (const std::size_t size : sizes_of(tag)) {
      targets.push_back({tensor(tag, targets.size()).bytes(), at, size});
      at += align_up(size);
    }
    CHECK_EQUAL(dict->block->size(), at);
    start_arrival(dict->block, targets, compute_.ordinal(), arrivals_.handle(), compute_.handle());
  }

  void check(std::uint64_t tag) {
    const std::vector<std::size_t> sizes = sizes_of(tag);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      CHECK(pattern::matches((tag << 8) + i, compute_.read(tensor(tag, i), sizes[i]).data(), sizes[i]));
    }
  }

  static constexpr std::uint64_t kAhead = 3;

 private:
  const Memory& tensor(std::uint64_t tag, std::size_t index) const { return tensors_[tag % kAhead * 4 + index]; }

  Compute compute_, arrivals_;
  std::vector<Memory> tensors_;
};

inline void receive_on(Link& link, int ordinal, std::uint64_t dicts) {
  Consumer consumer(ordinal);
  for (std::uint64_t tag = 0; tag < dicts + Consumer::kAhead - 1; ++tag) {
    if (tag < dicts) consumer.take(link, tag);
    if (tag + 1 >= Consumer::kAhead) consumer.check(tag + 1 - Consumer::kAhead);
  }
}

}  // namespace devices
