// What the fuzz targets share. A target is one file fuzz_NAME.cc that defines LLVMFuzzerTestOneInput, with its corpus in
// corpus/NAME: CMake, the replay in the test suite and `make fuzz` find both by their names.
//
// A target gives any bytes to a decoder. Refusing them with one of the decoder's errors is right; whatever it accepts
// must hold what the target requires; everything else is for the sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

// Takes numbers and runs of bytes off the front of the input; zeros when it is at its end.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), left_(size) {}

  std::size_t left() const { return left_; }
  const std::uint8_t* rest() const { return at_; }

  template <typename Number>
  Number number() {
    Number value = 0;
    const std::size_t size = left_ < sizeof value ? left_ : sizeof value;
    if (size > 0) std::memcpy(&value, bytes(size), size);  // there may be no input at all
    return value;
  }

  const std::uint8_t* bytes(std::size_t size) {
    const std::uint8_t* start = at_;
    at_ += size;
    left_ -= size;
    return start;
  }

 private:
  const std::uint8_t* at_;
  std::size_t left_;
};

// False: refused, as a decoder may. Other exceptions end the program.
template <typename Decode>
bool accepts(Decode decode) {
  try {
    decode();
    return true;
  } catch (const zmqpp::Error& error) {
    const zmqpp::Code code = error.code();
    require(code == zmqpp::Code::kMalformed || code == zmqpp::Code::kVersion || code == zmqpp::Code::kSequence ||
                code == zmqpp::Code::kChecksum,
            "a decoder refuses with one of its own errors");
    return false;
  }
}

}  // namespace fuzz
