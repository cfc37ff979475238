// Packing: what each kind of vectors makes of a tensor, and what the kernels make of it, by the fake driver's hand.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "device/device.h"
#include "device/stream.h"
#include "pack/on_device.h"
#include "pack/pack.h"
#include "pattern.h"

using namespace zmqpp;        // NOLINT: a program
using namespace zmqpp::pack;  // NOLINT

namespace {

constexpr Number kNumbers[] = {Number::kFloat32, Number::kFloat16, Number::kBfloat16};
constexpr Format kFormats[] = {Format::kFp8, Format::kInt8};
constexpr std::size_t kGuard = 64;

std::size_t size_of(Number number) { return number == Number::kFloat32 ? 4 : 2; }

// Every pattern of bits: denormals, infinities and NaN too; most runs hold numbers of one size, as those of a model do.
std::vector<std::uint8_t> numbers_of(Number number, Shape shape, std::uint64_t seed) {
  pattern::Random random(seed);
  std::vector<std::uint8_t> made(shape.values() * size_of(number));
  for (std::size_t i = 0; i < shape.values(); ++i) {
    const bool wild = i / 128 % 4 == 0;
    const float value = std::ldexp(static_cast<float>(random.below(1 << 24)) - (1 << 23), static_cast<int>(random.below(12)) - 30);
    std::uint32_t bits = wild ? static_cast<std::uint32_t>(random.below(std::uint64_t{1} << 32)) : std::bit_cast<std::uint32_t>(value);
    if (number == Number::kBfloat16) bits >>= 16;
    if (number == Number::kFloat16 && !wild) bits = (bits >> 31 << 15) | (bits >> 13 & 0x3ff) | (15 - (i & 7)) << 10;
    std::memcpy(made.data() + i * size_of(number), &bits, size_of(number));
  }
  return made;
}

struct Packed {
  std::vector<std::uint8_t> codes, numbers;
  std::vector<std::uint32_t> scales;  // as bits: NaN is not equal to itself
  bool operator==(const Packed&) const = default;
};

Packed by(Vectors vectors, Number number, Format format, Shape shape, const std::vector<std::uint8_t>& in) {
  Packed out{std::vector<std::uint8_t>(shape.values() + kGuard, 0xaa),
             std::vector<std::uint8_t>(in.size() + kGuard, 0xaa), std::vector<std::uint32_t>(shape.scales())};
  std::vector<float> scales(shape.scales());
  pack::pack(number, format, shape, in.data(), out.codes.data(), scales.data(), vectors);
  unpack(number, format, shape, out.codes.data(), scales.data(), out.numbers.data(), vectors);
  std::memcpy(out.scales.data(), scales.data(), scales.size() * sizeof(float));
  return out;
}

class Memory {
 public:
  Memory(device::Device& device, std::size_t size) : device_(device) {
    const device::Current current(device);
    device::check(device::driver()->memory_allocate(&address_, size), "open", "memory");
    std::memset(bytes(), 0xaa, size);
  }
  ~Memory() {
    const device::Current current(device_, std::nothrow);
    device::driver()->memory_free(address_);
  }
  std::uint8_t* bytes() const { return reinterpret_cast<std::uint8_t*>(address_); }

 private:
  device::Device& device_;
  device::Address address_ = 0;
};

// `shift`: values by which the tensor is off the place where four lie together.
Packed by_kernels(Number number, Format format, Shape shape, const std::vector<std::uint8_t>& in, std::size_t shift) {
  auto& device = device::Device::of(1);
  const Memory from(device, in.size() + 64), codes(device, shape.values() + kGuard), scales(device, shape.scales() * 4 + 4);
  const Memory back(device, in.size() + kGuard);
  std::uint8_t* const placed = from.bytes() + shift * size_of(number);
  std::memcpy(placed, in.data(), in.size());
  device::Stream stream(device);
  const auto address = [](std::uint8_t* bytes) { return reinterpret_cast<device::Address>(bytes); };
  OnDevice where{1, stream.handle(), address(placed), address(codes.bytes()), address(scales.bytes())};
  pack_on_device(number, format, shape, where);
  where.numbers = address(back.bytes());
  unpack_on_device(number, format, shape, where);
  device::Event done(device);
  stream.record(done);
  while (!done.is_done()) std::this_thread::yield();
  Packed out{{codes.bytes(), codes.bytes() + shape.values() + kGuard},
             {back.bytes(), back.bytes() + in.size() + kGuard},
             std::vector<std::uint32_t>(shape.scales())};
  std::memcpy(out.scales.data(), scales.bytes(), shape.scales() * 4);
  return out;
}

template <typename Act>
void each(Act act) {
  for (const Number number : kNumbers) {
    for (const Format format : kFormats) act(number, format);
  }
}

const Shape kShapes[] = {{1, 1}, {3, 1}, {2, 5}, {5, 127}, {4, 128}, {3, 129}, {7, 192}, {2, 300}, {9, 512}, {1, 5000}};

}  // namespace

TEST(every_kind_of_vectors_packs_alike) {
  each([](Number number, Format format) {
    for (const Shape shape : kShapes) {
      const auto in = numbers_of(number, shape, check::seed() + shape.columns);
      const Packed wanted = by(Vectors::kBaseline, number, format, shape, in);
      CHECK(std::all_of(wanted.codes.end() - kGuard, wanted.codes.end(), [](auto byte) { return byte == 0xaa; }));
      for (int kind = 1; kind <= static_cast<int>(best_vectors()); ++kind) {
        CHECK(by(static_cast<Vectors>(kind), number, format, shape, in) == wanted);
      }
    }
  });
}

TEST(kernels_pack_as_the_cpu_does) {
  if (!why_no_kernels().empty()) return;
  each([](Number number, Format format) {
    for (const Shape shape : kShapes) {
      const auto in = numbers_of(number, shape, check::seed() + shape.columns);
      const Packed wanted = by(Vectors::kBaseline, number, format, shape, in);
      for (const std::size_t shift : {0, 1, 3}) CHECK(by_kernels(number, format, shape, in, shift) == wanted);
    }
  });
}

TEST(kernels_that_cannot_be_had_are_an_error_with_the_reason) {
  const OnDevice nowhere{5, nullptr, 0, 0, 0};
  if (why_no_kernels().empty()) {
    CHECK_ERROR(Code::kDevice, pack_on_device(Number::kFloat16, Format::kFp8, {1, 1}, nowhere));
    const OnDevice here{0, nullptr, 0, 0, 0};
    CHECK_ERROR(Code::kConfig, pack_on_device(Number::kFloat16, Format::kFp8, {std::size_t{1} << 33, 1}, here));
  } else {
    CHECK_ERROR(Code::kUnsupported, pack_on_device(Number::kFloat16, Format::kFp8, {1, 1}, nowhere));
  }
}
