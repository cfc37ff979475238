// Seconds as error texts show them: "0.3 s", "5 s".
//
// Owns: nothing. Blocks? never. Thread: pure. Errors: none.
#pragma once

#include <cstdio>
#include <string>

namespace zmqpp {

inline std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", seconds);
  return text;
}

}  // namespace zmqpp
