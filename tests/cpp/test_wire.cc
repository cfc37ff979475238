// Heads, hellos and manifests: what is written reads back the same, everything else is refused by name.
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/align.h"
#include "check.h"
#include "pattern.h"
#include "wire/head.h"
#include "wire/hello.h"
#include "wire/manifest.h"

using namespace zmqpp;        // NOLINT: a program
using namespace zmqpp::wire;  // NOLINT

namespace {

const Limits kLimits{.max_control_bytes = 1000, .max_dict_bytes = 1u << 24};
constexpr std::size_t kAtVersion = 4, kAtKind = 6, kAtRoute = 7;  // docs/wire_format.md

// Only the head is read, but the frame must be as long as it says.
Head reread(const Head& head, std::size_t body_size) {
  std::vector<std::uint8_t> frame(kHeadSize + body_size);
  write_head(head, frame.data());
  return read_head(frame.data(), frame.size(), kLimits);
}

Head reread(const Head& head) { return reread(head, head.body_size); }

Head reread_with(std::size_t at, std::uint8_t byte) {
  HeadBytes frame{};
  write_head({.kind = Kind::kBeat}, frame.data());
  frame[at] = byte;
  return read_head(frame.data(), frame.size(), kLimits);
}

void check_same(const Head& a, const Head& b) {
  HeadBytes one{}, other{};
  write_head(a, one.data());
  write_head(b, other.data());
  CHECK(one == other);
}

void manifest(const std::string& bytes) { check_manifest(bytes.data(), bytes.size()); }

std::string nested(int levels) { return std::string(levels, '\x91') + '\x01'; }

DictBody split(const std::string& bytes, std::uint64_t total, bool inline_payload) {
  return split_dict_body(bytes.data(), bytes.size(), total, inline_payload);
}

std::string dict_body(const std::string& text, std::size_t gap, std::size_t payload) {
  const auto size = static_cast<std::uint32_t>(text.size());
  return std::string(reinterpret_cast<const char*>(&size), 4) + text + std::string(gap + payload, '\0');
}

constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();

}  // namespace

TEST(head_reads_back_with_every_field) {
  const Head dict{.kind = Kind::kDict, .flags = kFlagInline, .epoch = 0xfffffffe, .session = kHuge - 1,
                  .sequence = kHuge - 2, .tag = kHuge - 3, .total = 128, .body_size = 300};
  check_same(reread(dict), dict);
  const Head chunk{.kind = Kind::kChunk, .epoch = 1, .session = 2, .sequence = 3, .tag = 4, .offset = 64,
                   .total = 192, .body_size = 128};
  check_same(reread(chunk), chunk);
  for (const Route route : {Route::kLink, Route::kRequest, Route::kReply, Route::kNotice}) {
    const Head control{.kind = Kind::kControl, .route = route, .body_size = 1000};
    check_same(reread(control), control);
  }
}

TEST(reader_refuses_what_is_no_head) {
  HeadBytes frame{};
  write_head({.kind = Kind::kBeat}, frame.data());
  for (std::size_t size = 0; size < kHeadSize; ++size) {
    const std::vector<std::uint8_t> cut(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK_ERROR(Code::kMalformed, read_head(cut.data(), cut.size(), kLimits));
  }
  for (std::size_t at = 0; at < 4; ++at) CHECK_ERROR(Code::kMalformed, reread_with(at, 'x'));
  CHECK_ERROR(Code::kVersion, reread_with(kAtVersion, kVersion + 1));
  CHECK_ERROR(Code::kVersion, reread_with(kAtVersion + 1, 1));
}

TEST(checksum_covers_every_byte_of_a_message) {
  std::vector<std::uint8_t> frame(kHeadSize + 100, 7);
  write_head({.kind = Kind::kControl, .flags = kFlagChecked, .sequence = 5, .body_size = 100}, frame.data());
  write_checksum(frame.data(), frame.size());
  CHECK_EQUAL(read_head(frame.data(), frame.size(), kLimits).sequence, 5u);
  for (std::size_t at = 12; at < frame.size(); ++at) {
    if (at >= 56 && at < 60) continue;  // the body's size, which is looked at first
    frame[at] ^= 1;
    CHECK_ERROR(Code::kChecksum, read_head(frame.data(), frame.size(), kLimits));
    frame[at] ^= 1;
  }
  frame[8] = 0;  // no flag, but a checksum
  CHECK_ERROR(Code::kMalformed, read_head(frame.data(), frame.size(), kLimits));
}

TEST(reader_refuses_unknown_kinds_routes_and_flags) {
  for (const int kind : {0, 200, 255}) CHECK_ERROR(Code::kMalformed, reread_with(kAtKind, kind));
  CHECK_ERROR(Code::kMalformed, reread_with(kAtRoute, 1));
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kControl, .route = static_cast<Route>(4)}));
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kDict, .flags = 1u << 31, .body_size = 4}));
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kChunk, .flags = 1, .total = 8, .body_size = 8}));
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kControl, .flags = 1}));
}

TEST(reader_refuses_a_body_of_another_size_than_announced) {
  for (const std::size_t came : {0, 9, 11}) {
    CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kControl, .body_size = 10}, came));
  }
}

TEST(reader_takes_each_size_up_to_its_limit) {
  reread({.kind = Kind::kControl, .body_size = 1000});
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kControl, .body_size = 1001}));
  reread({.kind = Kind::kHello, .body_size = kMaxHelloBytes});
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kHello, .body_size = kMaxHelloBytes + 1}));
  for (const Kind empty : {Kind::kBye, Kind::kBeat, Kind::kCancel, Kind::kNudge}) {
    reread({.kind = empty});
    CHECK_ERROR(Code::kMalformed, reread({.kind = empty, .body_size = 1}));
    CHECK_ERROR(Code::kMalformed, reread({.kind = empty, .offset = 1}));
    CHECK_ERROR(Code::kMalformed, reread({.kind = empty, .total = 1}));
  }
  reread({.kind = Kind::kDict, .total = kLimits.max_dict_bytes, .body_size = 4});
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kDict, .total = kLimits.max_dict_bytes + 1, .body_size = 4}));
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kDict, .total = std::uint64_t{1} << 60, .body_size = 4}));
  CHECK_ERROR(Code::kMalformed, reread({.kind = Kind::kDict, .offset = 1, .total = 8, .body_size = 4}));
  CHECK_ERROR(Code::kMalformed,
              reread({.kind = Kind::kDict, .flags = kFlagInline, .total = kMaxInlineBytes + 1, .body_size = 4}));
}

TEST(reader_refuses_chunks_outside_their_payload) {
  const auto chunk = [](std::uint64_t offset, std::uint64_t total, std::uint32_t size) {
    return reread({.kind = Kind::kChunk, .offset = offset, .total = total, .body_size = size});
  };
  chunk(0, 64, 64);
  chunk(63, 64, 1);
  CHECK_ERROR(Code::kMalformed, chunk(0, 64, 0));
  CHECK_ERROR(Code::kMalformed, chunk(1, 64, 64));
  CHECK_ERROR(Code::kMalformed, chunk(65, 64, 1));
  CHECK_ERROR(Code::kMalformed, chunk(kHuge, 64, 1));       // where offset + size would wrap around
  CHECK_ERROR(Code::kMalformed, chunk(kHuge - 7, 64, 16));
  CHECK_ERROR(Code::kMalformed, chunk(0, kLimits.max_dict_bytes + 1, 64));
}

TEST(largest_frame_holds_the_largest_of_each_kind) {
  CHECK(kLimits.max_frame_bytes() >= kHeadSize + kMaxChunkBytes);
  CHECK(kLimits.max_frame_bytes() >= kHeadSize + kMaxManifestBytes + kMaxInlineBytes);
  const Limits wide{.max_control_bytes = kMaxControlBytes};
  CHECK_EQUAL(wide.max_frame_bytes(), kHeadSize + kMaxControlBytes);
}

TEST(hello_reads_back_and_long_texts_are_cut) {
  const std::string body = write_hello({.rank = 3, .world_size = 4, .name = "stage 3", .segment_bytes = kHuge,
                                        .boot_id = "id", .segment = "zmqpp-1", .no_segment = ""});
  const Hello hello = read_hello(body.data(), body.size());
  CHECK_EQUAL(hello.rank, 3);
  CHECK_EQUAL(hello.world_size, 4);
  CHECK_EQUAL(hello.name, "stage 3");
  CHECK_EQUAL(hello.segment_bytes, kHuge);
  CHECK_EQUAL(hello.boot_id, "id");
  CHECK_EQUAL(hello.segment, "zmqpp-1");
  CHECK_EQUAL(hello.no_segment, "");
  const std::string much(5000, 'n');
  const std::string most = write_hello({.name = much, .boot_id = much, .segment = much, .no_segment = much});
  CHECK(most.size() <= kMaxHelloBytes && read_hello(most.data(), most.size()).no_segment.size() > 100);
  for (std::size_t size = 0; size < body.size(); ++size) CHECK_ERROR(Code::kMalformed, read_hello(body.data(), size));
  const std::string longer = body + '\0';
  CHECK_ERROR(Code::kMalformed, read_hello(longer.data(), longer.size()));
}

TEST(manifest_is_one_value_of_the_subset) {
  using namespace std::string_literals;
  for (const std::string& value :
       {"\xc0"s, "\xc2"s, "\xc3"s, "\x00"s, "\x7f"s, "\xe0"s, "\xff"s, "\x90"s, "\xa0"s, "\xa2hi"s, "\xc4\x01x"s,
        "\xc5\x00\x01x"s, "\xc6\x00\x00\x00\x01x"s, "\xd9\x01x"s, "\xda\x00\x01x"s, "\xdb\x00\x00\x00\x01x"s,
        "\xcc\x01"s, "\xcd\x01\x02"s, "\xce\x01\x02\x03\x04"s, "\xcf\x01\x02\x03\x04\x05\x06\x07\x08"s, "\xd0\x01"s,
        "\xd1\x01\x02"s, "\xd2\x01\x02\x03\x04"s, "\xd3\x01\x02\x03\x04\x05\x06\x07\x08"s,
        "\xcb\x01\x02\x03\x04\x05\x06\x07\x08"s, "\xdc\x00\x02\xc0\xc0"s, "\xdd\x00\x00\x00\x02\xc0\xc0"s,
        "\x92\x91\xce\x00\x30\x00\x00\x91\x01"s}) {
    manifest(value);
    CHECK_ERROR(Code::kMalformed, manifest(value + '\xc0'));
    for (std::size_t size = 0; size < value.size(); ++size) CHECK_ERROR(Code::kMalformed, manifest(value.substr(0, size)));
  }
}

TEST(manifest_has_no_maps_extensions_or_float_32) {
  for (int type = 0x80; type <= 0x8f; ++type) CHECK_ERROR(Code::kMalformed, manifest(std::string(1, type)));
  for (const int type : {0xc1, 0xc7, 0xc8, 0xc9, 0xca, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xde, 0xdf}) {
    CHECK_ERROR(Code::kMalformed, manifest(std::string(1, type) + std::string(32, '\0')));
  }
}

TEST(manifest_may_not_announce_more_than_there_is) {
  CHECK_ERROR(Code::kMalformed, manifest("\xdd\xff\xff\xff\xff"));  // 2^32 - 1 items in no bytes
  CHECK_ERROR(Code::kMalformed, manifest(std::string("\xdd\xff\xff\xff\xff") + std::string(100, '\xc0')));
  CHECK_ERROR(Code::kMalformed, manifest("\xc6\xff\xff\xff\xff"));
  CHECK_ERROR(Code::kMalformed, manifest("\xdb\x7f\xff\xff\xff"));
}

TEST(manifest_is_nested_as_deeply_as_allowed) {
  manifest(nested(kMaxManifestDepth));
  CHECK_ERROR(Code::kMalformed, manifest(nested(kMaxManifestDepth + 1)));
  CHECK_ERROR(Code::kMalformed, manifest(nested(1 << 20)));
}

TEST(dict_body_is_exactly_its_parts) {
  const std::string text = "\x92\x90\x91\x01";
  const DictBody bare = split(dict_body(text, 0, 0), 0, false);
  CHECK_EQUAL(bare.manifest_offset, kManifestPrefix);
  CHECK_EQUAL(bare.manifest_size, text.size());
  const std::size_t gap = align_up(kManifestPrefix + text.size()) - (kManifestPrefix + text.size());
  const DictBody full = split(dict_body(text, gap, 128), 128, true);
  CHECK_EQUAL(full.payload_offset, kAlign);
  for (const std::size_t payload : {0, 127, 129}) {
    CHECK_ERROR(Code::kMalformed, split(dict_body(text, gap, payload), 128, true));
  }
  CHECK_ERROR(Code::kMalformed, split(dict_body(text, 0, 0), 128, true));
  CHECK_ERROR(Code::kMalformed, split(dict_body(text, gap, 128), kHuge, true));
  CHECK_ERROR(Code::kMalformed, split(dict_body(text, 0, 1), 0, false));
}

TEST(dict_body_may_not_announce_a_larger_manifest) {
  const std::string text = "\x92\x90\x91\x01";
  for (std::size_t size = 0; size < kManifestPrefix + text.size(); ++size) {
    CHECK_ERROR(Code::kMalformed, split(dict_body(text, 0, 0).substr(0, size), 0, false));
  }
  CHECK_ERROR(Code::kMalformed, split("\xff\xff\xff\xff" + text, 0, false));
}
