// [u8 inline? | u64 total | body of a dict message]: refused, or its parts lie within it and the manifest is one value.
#include "base/align.h"
#include "fuzz.h"
#include "wire/constants.h"
#include "wire/manifest.h"

using namespace zmqpp::wire;  // NOLINT: a program

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const bool inline_payload = input.number<std::uint8_t>() % 2 == 1;
  const auto total = input.number<std::uint64_t>();
  if (inline_payload && total > kMaxInlineBytes) return 0;  // refused with the head
  const std::uint8_t* body = input.rest();
  DictBody parts{};
  if (!fuzz::accepts([&] { parts = split_dict_body(body, input.left(), total, inline_payload); })) return 0;
  const std::size_t end = parts.manifest_offset + parts.manifest_size;
  fuzz::require(parts.manifest_offset == kManifestPrefix && end <= input.left(), "the manifest lies within the body");
  fuzz::require(parts.payload_offset == (inline_payload ? zmqpp::align_up(end) : end), "the payload follows it");
  fuzz::require(parts.payload_offset + (inline_payload ? total : 0) == input.left(), "nothing follows the payload");
  const std::uint8_t* manifest = body + parts.manifest_offset;
  fuzz::require(parts.manifest_size > 0, "an empty manifest is none");
  fuzz::require(!fuzz::accepts([&] { check_manifest(manifest, parts.manifest_size - 1); }), "a shorter one is none");
  return 0;
}
