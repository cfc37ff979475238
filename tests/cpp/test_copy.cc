// Copies and checksums: the same bytes and sums, however the data lies and however it is cut.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "check.h"
#include "memory/copy.h"
#include "pattern.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::memory;  // NOLINT

namespace {

constexpr std::size_t kGuard = 128;

// Nothing but the target is written; nothing but the source is read, which AddressSanitizer sees.
void check_copy(std::size_t size, std::size_t to, std::size_t from, std::size_t of) {
  const std::vector<std::uint8_t> wanted = pattern::bytes(size, size);
  std::vector<std::uint8_t> source(std::max<std::size_t>(from + size, 1));
  std::copy(wanted.begin(), wanted.end(), source.begin() + static_cast<std::ptrdiff_t>(from));
  std::vector<std::uint8_t> target(kGuard + to + size + kGuard, 0xaa);
  copy_bytes(target.data() + kGuard + to, source.data() + from, size, of);
  CHECK(std::equal(wanted.begin(), wanted.end(), target.begin() + static_cast<std::ptrdiff_t>(kGuard + to)));
  const auto untouched = [](std::uint8_t byte) { return byte == 0xaa; };
  CHECK(std::all_of(target.begin(), target.begin() + static_cast<std::ptrdiff_t>(kGuard + to), untouched));
  CHECK(std::all_of(target.end() - kGuard, target.end(), untouched));
}

// Bit by bit, as RFC 3720 defines it: shares nothing with the table or the instruction.
std::uint32_t crc_by_bits(const std::uint8_t* in, std::size_t size) {
  std::uint32_t crc = 0xffffffff;
  for (std::size_t i = 0; i < size; ++i) {
    crc ^= in[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

}  // namespace

TEST(copy_is_exact_at_every_alignment) {
  for (const std::size_t of : {std::size_t{0}, streaming_from()}) {
    for (std::size_t to = 0; to < 64; ++to) {
      for (const std::size_t from : {std::size_t{0}, std::size_t{1}, std::size_t{31}, 64 - to}) check_copy(700, to, from, of);
    }
  }
}

TEST(copy_is_exact_for_sizes_around_lines) {
  for (const std::size_t of : {std::size_t{0}, streaming_from()}) {
    for (std::size_t size = 0; size < 600; ++size) check_copy(size, size % 7, size % 3, of);
  }
}

TEST(copy_is_exact_around_the_streaming_threshold) {
  for (const std::ptrdiff_t by : {-65, -1, 0, 1, 65}) {
    const std::size_t size = streaming_from() + by;
    check_copy(size, 3, 5, size);
  }
}

TEST(checksum_is_crc32c) {
  CHECK_EQUAL(crc32c(0, "123456789", 9), 0xe3069283u);  // the check value of the algorithm
  CHECK_EQUAL(crc32c(0, nullptr, 0), 0u);
  const std::vector<std::uint8_t> zeros(32), ones(32, 0xff);  // RFC 3720, B.4
  CHECK_EQUAL(crc32c(0, zeros.data(), 32), 0x8a9136aau);
  CHECK_EQUAL(crc32c(0, ones.data(), 32), 0x62a8ab43u);
  const std::string implementation = crc32c_implementation();
  CHECK(implementation == "sse4.2" || implementation == "armv8" || implementation == "table");
}

// 12 KiB is where three lanes run beside one another.
TEST(checksum_is_right_for_every_size_and_alignment) {
  const std::vector<std::uint8_t> bytes = pattern::bytes(check::seed(), 60'000);
  std::vector<std::size_t> sizes{12'287, 12'288, 12'289, 24'575, 24'576, 24'577, 36'864 + 4095, 50'000};
  for (std::size_t size = 0; size < 70; ++size) sizes.push_back(size);
  for (const std::size_t size : sizes) {
    for (const std::size_t at : {0, 1, 7, 8, 63}) {
      CHECK_EQUAL(crc32c(0, bytes.data() + at, size), crc_by_bits(bytes.data() + at, size));
    }
  }
}

TEST(checksum_of_pieces_is_that_of_the_whole) {
  pattern::Random random(check::seed());
  const std::vector<std::uint8_t> bytes = pattern::bytes(2, 100'000);
  const std::uint32_t whole = crc32c(0, bytes.data(), bytes.size());
  for (int round = 0; round < 50; ++round) {
    std::uint32_t sum = 0;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t step = std::min<std::size_t>(bytes.size() - at, random.below(random.one_in(2) ? 100 : 30'000));
      sum = crc32c(sum, bytes.data() + at, step);
      at += step;
    }
    CHECK_EQUAL(sum, whole);
  }
}

TEST(checksum_sees_every_single_bit) {
  std::vector<std::uint8_t> bytes = pattern::bytes(3, 13'000);
  const std::uint32_t whole = crc32c(0, bytes.data(), bytes.size());
  for (std::size_t at = 0; at < bytes.size(); at += 97) {
    bytes[at] ^= static_cast<std::uint8_t>(1u << (at % 8));
    CHECK(crc32c(0, bytes.data(), bytes.size()) != whole);
    bytes[at] ^= static_cast<std::uint8_t>(1u << (at % 8));
  }
}
