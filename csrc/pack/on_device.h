// Packing and unpacking a tensor in the memory of a CUDA device, by kernels that were compiled when zmqpp was built.
//
// Owns: the kernels, once loaded on a device for the life of the process. Blocks? the first call for a device, while they are
//   loaded; no other: the caller's stream does the work. Thread: all safe.
// Errors: kUnsupported: this build has none, as why_no_kernels says. kDevice: the driver cannot use them; kConfig: too large.
#pragma once

#include <string>

#include "device/driver.h"
#include "pack/pack.h"

namespace zmqpp::pack {

std::string why_no_kernels();  // empty: this build has them

// All three addresses are memory of that device, `stream` one of its streams; sizes as in pack and unpack.
struct OnDevice {
  device::Ordinal ordinal;
  device::StreamHandle stream;
  device::Address numbers, codes, scales;
};
void pack_on_device(Number number, Format format, Shape shape, const OnDevice& where);
void unpack_on_device(Number number, Format format, Shape shape, const OnDevice& where);

}  // namespace zmqpp::pack
