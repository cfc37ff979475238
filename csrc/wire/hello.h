// Body of the first message of a session: [i64 rank | i64 world_size | name in UTF-8]. -1 and 0: there are none.
//
// Owns: values. Blocks? never. Thread: pure. Errors: read_hello throws kMalformed.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "base/error.h"
#include "wire/constants.h"

namespace zmqpp::wire {

struct Hello {
  std::int64_t rank = -1;
  std::int64_t world_size = 0;
  std::string name;
};

inline constexpr std::size_t kHelloNumbers = 16;

inline std::string write_hello(const Hello& hello) {
  std::string body(kHelloNumbers, '\0');
  std::memcpy(body.data(), &hello.rank, 8);
  std::memcpy(body.data() + 8, &hello.world_size, 8);
  return body + hello.name.substr(0, kMaxHelloBytes - kHelloNumbers);
}

inline Hello read_hello(const void* body, std::size_t size) {
  if (size < kHelloNumbers) throw Error(Code::kMalformed, "receive", "a hello of " + std::to_string(size) + " bytes");
  const char* in = static_cast<const char*>(body);
  Hello hello;
  std::memcpy(&hello.rank, in, 8);
  std::memcpy(&hello.world_size, in + 8, 8);
  hello.name.assign(in + kHelloNumbers, size - kHelloNumbers);
  return hello;
}

}  // namespace zmqpp::wire
