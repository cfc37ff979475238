// A number no other session has.
//
// Blocks? only before the system's entropy is ready, at boot. Thread: safe. Errors: kResource.
#pragma once

#include <sys/random.h>

#include <cstdint>

#include "base/error.h"

namespace zmqpp {

inline std::uint64_t random_u64() {
  std::uint64_t value = 0;
  if (::getrandom(&value, sizeof value, 0) != sizeof value) throw Error(Code::kResource, "open", "no random numbers");
  return value;
}

}  // namespace zmqpp
