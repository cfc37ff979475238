// The body of a hello: refused, or writes back as the same bytes, unless one of its texts is too long to be written.
#include "fuzz.h"
#include "wire/constants.h"
#include "wire/hello.h"

using namespace zmqpp::wire;  // NOLINT: a program

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > kMaxHelloBytes) return 0;  // refused with the head
  Hello hello;
  const bool accepted = fuzz::accepts([&] { hello = read_hello(data, size); });
  if (!accepted) return 0;
  const auto within = [](const std::string& text, std::size_t most) { return text.size() <= most; };
  if (!within(hello.name, 512) || !within(hello.boot_id, 64) || !within(hello.segment, 128) ||
      !within(hello.no_segment, 256)) {
    return 0;  // longer than any that is written
  }
  const std::string again = write_hello(hello);
  fuzz::require(again.size() == size && std::memcmp(again.data(), data, size) == 0, "a hello reads and writes the same");
  return 0;
}
