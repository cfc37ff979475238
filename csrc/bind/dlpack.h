// The part of DLPack's ABI that a tensor needs to change hands without a copy.
// Source: DLPack specification, unversioned DLManagedTensor (github.com/dmlc/dlpack, dlpack.h).
//
// Owns: nothing; these are layouts. Blocks? never. Errors: none.
#pragma once

#include <cstdint>

namespace zmqpp::bind::dlpack {

inline constexpr char kCapsuleName[] = "dltensor";
inline constexpr std::int32_t kCpu = 1;
inline constexpr std::int32_t kCuda = 2;

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  DataType type;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor* self);
};

inline constexpr char kExchangeName[] = "dlpack_exchange_api";
inline constexpr std::uint32_t kMajor = 1;

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

// The C functions a framework offers for its tensors. Source: DLPackExchangeAPI, DLPack 1.3.
struct Exchange {
  Version version;
  Exchange* older;
  void* allocate;
  void* from_tensor;
  void* to_tensor;
  int (*view)(void* tensor, Tensor* out);  // not 0: it cannot, and a Python error is set
  void* current_stream;
};

}  // namespace zmqpp::bind::dlpack
