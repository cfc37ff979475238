#include "pack/on_device.h"

#include <array>
#include <limits>
#include <map>
#include <memory>
#include <mutex>

#include "base/error.h"
#include "device/module.h"
#include "pack/arithmetic.h"
#include "pack/image.h"

namespace zmqpp::pack {
namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / 32;  // a warp a run
constexpr std::array kNumbers{"float32", "float16", "bfloat16"};
constexpr std::array kFormats{"fp8", "int8"};

struct Kernel {
  device::FunctionHandle pack, unpack;
};

class Kernels {
 public:
  explicit Kernels(device::Device& device) : module_(device, kImage) {
    for (std::size_t number = 0; number < kNumbers.size(); ++number) {
      for (std::size_t format = 0; format < kFormats.size(); ++format) {
        const std::string name = std::string("pack_") + kNumbers[number] + "_" + kFormats[format];
        kernels_[number][format] = {module_.function(name.c_str()), module_.function(("un" + name).c_str())};
      }
    }
  }
  const Kernel& of(Number number, Format format) const {
    return kernels_[static_cast<std::size_t>(number)][static_cast<std::size_t>(format)];
  }
  device::Device& device() const { return module_.device(); }

 private:
  device::Module module_;
  Kernel kernels_[kNumbers.size()][kFormats.size()];
};

// Never unloaded: when the process ends, the driver may be gone before us.
const Kernels& kernels_on(device::Ordinal ordinal) {
  static std::mutex mutex;
  static auto* const loaded = new std::map<device::Ordinal, std::unique_ptr<Kernels>>;
  if (!kHasImage) throw Error(Code::kUnsupported, "pack", why_no_kernels());
  const std::lock_guard lock(mutex);
  std::unique_ptr<Kernels>& found = (*loaded)[ordinal];
  if (!found) found = std::make_unique<Kernels>(device::Device::of(ordinal));
  return *found;
}

unsigned in_32_bits(std::size_t number) {
  if (number > std::numeric_limits<unsigned>::max() - kWarps) {
    throw Error(Code::kConfig, "pack", "a tensor of more than 2^32 runs");
  }
  return static_cast<unsigned>(number);
}

// Whether rows begin where four values can be read, and four codes written, at once.
bool in_fours(Number number, Shape shape, const OnDevice& where) {
  const std::size_t value = number == Number::kFloat32 ? 4 : 2;
  return shape.columns % 4 == 0 && where.numbers % (4 * value) == 0 && where.codes % 4 == 0;
}

void launch(const Kernels& kernels, device::FunctionHandle function, Shape shape, bool whole, const OnDevice& where,
            std::array<device::Address, 3> addresses) {
  unsigned runs = in_32_bits(shape.scales()), columns = in_32_bits(shape.columns);
  if (runs == 0) return;
  std::array<void*, 6> arguments{&addresses[0], &addresses[1], &addresses[2], &runs, &columns, &whole};
  device::launch(kernels.device(), function, where.stream, (runs + kWarps - 1) / kWarps, kThreads, arguments.data());
}

}  // namespace

std::string why_no_kernels() {
  return kHasImage ? "" : "this build of zmqpp has no CUDA kernels: " + std::string(kWhyNoImage);
}

void pack_on_device(Number number, Format format, Shape shape, const OnDevice& where) {
  const Kernels& kernels = kernels_on(where.ordinal);
  launch(kernels, kernels.of(number, format).pack, shape, in_fours(number, shape, where), where,
         {where.numbers, where.codes, where.scales});
}

void unpack_on_device(Number number, Format format, Shape shape, const OnDevice& where) {
  const Kernels& kernels = kernels_on(where.ordinal);
  launch(kernels, kernels.of(number, format).unpack, shape, in_fours(number, shape, where), where,
         {where.codes, where.scales, where.numbers});
}

}  // namespace zmqpp::pack
