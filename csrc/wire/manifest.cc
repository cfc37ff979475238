#include "wire/manifest.h"

#include <array>
#include <cstring>
#include <string>

#include "base/align.h"
#include "base/error.h"
#include "wire/constants.h"

namespace zmqpp::wire {
namespace {

[[noreturn]] void malformed(const std::string& detail) {
  throw Error(Code::kMalformed, "receive", "manifest: " + detail);
}

// What one type byte announces: bytes that follow it, or items that follow it.
struct Token {
  std::uint64_t skip = 0;
  std::uint64_t items = 0;
};

class Walker {
 public:
  Walker(const std::uint8_t* at, std::size_t size) : at_(at), left_(size) {}

  void value() {
    std::array<std::uint64_t, kMaxManifestDepth> open{};  // items still missing at each level
    std::size_t depth = 0;
    do {
      const Token token = next();
      advance(token.skip);
      if (token.items > left_) malformed("an array longer than the manifest");
      if (token.items > 0) {
        if (depth == open.size()) malformed("nested too deeply");
        open[depth++] = token.items;
        continue;
      }
      while (depth > 0 && --open[depth - 1] == 0) --depth;
    } while (depth > 0);
    if (left_ != 0) malformed(std::to_string(left_) + " bytes behind its end");
  }

 private:
  Token next() {
    const std::uint8_t type = *advance(1);
    if (type <= 0x7f || type >= 0xe0) return {};                                    // small integers
    if (type >= 0x90 && type <= 0x9f) return {.items = type & 0x0fu};               // short array
    if (type >= 0xa0 && type <= 0xbf) return {.skip = type & 0x1fu};                // short str
    switch (type) {
      case 0xc0: case 0xc2: case 0xc3: return {};                                   // nil, false, true
      case 0xc4: case 0xd9: return {.skip = number(1)};                             // bin 8, str 8
      case 0xc5: case 0xda: return {.skip = number(2)};
      case 0xc6: case 0xdb: return {.skip = number(4)};
      case 0xcc: case 0xd0: return {.skip = 1};                                     // integers
      case 0xcd: case 0xd1: return {.skip = 2};
      case 0xce: case 0xd2: return {.skip = 4};
      case 0xcf: case 0xd3: case 0xcb: return {.skip = 8};                          // and float 64
      case 0xdc: return {.items = number(2)};
      case 0xdd: return {.items = number(4)};
      default: malformed("type byte " + std::to_string(type) + " is not allowed");
    }
  }

  std::uint64_t number(std::size_t width) {
    const std::uint8_t* in = advance(width);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < width; ++i) value = value << 8 | in[i];  // msgpack is big endian
    return value;
  }

  const std::uint8_t* advance(std::uint64_t size) {
    if (size > left_) malformed("it ends in the middle of a value");
    const std::uint8_t* start = at_;
    at_ += size;
    left_ -= size;
    return start;
  }

  const std::uint8_t* at_;
  std::size_t left_;
};

}  // namespace

void check_manifest(const void* bytes, std::size_t size) {
  Walker(static_cast<const std::uint8_t*>(bytes), size).value();
}

DictBody split_dict_body(const void* body, std::size_t size, std::uint64_t total, bool inline_payload) {
  if (size < kManifestPrefix) malformed("the dict message is too short for it");
  std::uint32_t manifest_size = 0;
  std::memcpy(&manifest_size, body, sizeof manifest_size);
  if (manifest_size > kMaxManifestBytes || manifest_size > size - kManifestPrefix) {
    malformed(std::to_string(manifest_size) + " bytes announced, " + std::to_string(size - kManifestPrefix) + " there");
  }
  DictBody parts{kManifestPrefix, manifest_size, kManifestPrefix + manifest_size};
  if (inline_payload) parts.payload_offset = align_up(parts.payload_offset);
  const std::uint64_t expected = parts.payload_offset + (inline_payload ? total : 0);
  if (expected != size) {
    malformed("a dict message of " + std::to_string(size) + " bytes where its parts make " + std::to_string(expected));
  }
  check_manifest(static_cast<const std::uint8_t*>(body) + parts.manifest_offset, manifest_size);
  return parts;
}

}  // namespace zmqpp::wire
