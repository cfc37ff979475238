// Tensors on the fake driver's devices (tests/cuda/fake_driver.cc), and dicts of them. All that these tests know of csrc/device.
#pragma once

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "device/stream.h"
#include "engine/arrival.h"
#include "links.h"

namespace devices {

using namespace links;  // NOLINT: tests

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

}  // namespace devices
