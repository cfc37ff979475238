#include "wire/hello.h"

#include <array>
#include <cstring>

#include "base/error.h"
#include "wire/constants.h"

namespace zmqpp::wire {
namespace {

constexpr std::size_t kNumbers = 24;
constexpr std::size_t kTexts = 4;
constexpr std::size_t kFront = kNumbers + kTexts * sizeof(std::uint16_t);
constexpr std::array<std::size_t, kTexts> kLongest{512, 64, 128, 256};
static_assert(kFront + 512 + 64 + 128 + 256 <= kMaxHelloBytes);

[[noreturn]] void malformed(std::size_t size) {
  throw Error(Code::kMalformed, "receive", "a hello of " + std::to_string(size) + " bytes");
}

}  // namespace

std::string write_hello(const Hello& hello) {
  std::string body(kFront, '\0');
  std::memcpy(body.data(), &hello.rank, 8);
  std::memcpy(body.data() + 8, &hello.world_size, 8);
  std::memcpy(body.data() + 16, &hello.segment_bytes, 8);
  std::size_t at = kNumbers;
  for (std::size_t i = 0; const std::string* text : {&hello.name, &hello.boot_id, &hello.segment, &hello.no_segment}) {
    const std::string cut = text->substr(0, kLongest[i++]);
    const auto size = static_cast<std::uint16_t>(cut.size());
    std::memcpy(body.data() + at, &size, sizeof size);
    at += sizeof size;
    body += cut;
  }
  return body;
}

Hello read_hello(const void* body, std::size_t size) {
  if (size < kFront) malformed(size);
  const char* in = static_cast<const char*>(body);
  Hello hello;
  std::memcpy(&hello.rank, in, 8);
  std::memcpy(&hello.world_size, in + 8, 8);
  std::memcpy(&hello.segment_bytes, in + 16, 8);
  std::size_t at = kFront;
  for (std::size_t i = 0; std::string* text : {&hello.name, &hello.boot_id, &hello.segment, &hello.no_segment}) {
    std::uint16_t length = 0;
    std::memcpy(&length, in + kNumbers + sizeof length * i++, sizeof length);
    if (length > size - at) malformed(size);
    text->assign(in + at, length);
    at += length;
  }
  if (at != size) malformed(size);
  return hello;
}

}  // namespace zmqpp::wire
