// What another process wrote into the segment is checked before it is used.
//
// Owns: nothing. Blocks? never. Thread: all safe. Errors: kMalformed, with what was found.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"

namespace zmqpp::wire {

[[noreturn]] inline void malformed(const std::string& detail) {
  throw Error(Code::kMalformed, "receive", "shared segment: " + detail);
}

inline void require_valid(bool holds, const char* what, std::uint64_t found) {
  if (!holds) malformed(std::string(what) + " (found " + std::to_string(found) + ")");
}

}  // namespace zmqpp::wire
