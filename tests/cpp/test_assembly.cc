// Messages of one session become dicts; whatever does not continue what came before is refused by name.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/align.h"
#include "check.h"
#include "engine/assembly.h"
#include "engine/frame.h"
#include "pattern.h"
#include "wire/manifest.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT
using wire::Head;
using wire::Kind;

namespace {

const std::string kManifest = "\x92\x90\x91\x01";
constexpr std::uint64_t kTag = 7;
constexpr std::uint32_t kEpoch = 2;

net::Message frame_of(const std::vector<std::uint8_t>& body) {
  net::Message frame(wire::kHeadSize + body.size());
  if (!body.empty()) std::memcpy(body_of(frame), body.data(), body.size());
  return frame;
}

struct Session {
  Stats stats;
  Assembly assembly{stats};

  std::optional<Dict> dict(std::uint64_t total, const std::vector<std::uint8_t>* payload = nullptr) {
    std::vector<std::uint8_t> body(wire::kManifestPrefix);
    const auto size = static_cast<std::uint32_t>(kManifest.size());
    std::memcpy(body.data(), &size, sizeof size);
    body.insert(body.end(), kManifest.begin(), kManifest.end());
    if (payload != nullptr) {
      body.resize(align_up(body.size()));
      body.insert(body.end(), payload->begin(), payload->end());
    }
    net::Message frame = frame_of(body);
    const Head head{.kind = Kind::kDict, .flags = payload != nullptr ? wire::kFlagInline : 0, .epoch = kEpoch,
                    .tag = kTag, .total = total, .body_size = static_cast<std::uint32_t>(body.size())};
    return assembly.take_dict(head, frame);
  }

  // The part [offset, offset + size) of `payload`, said to be of `total`, with `change` made to its head.
  template <typename Change>
  std::optional<Dict> chunk(const std::vector<std::uint8_t>& payload, std::size_t offset, std::size_t size,
                            Change change) {
    const auto start = payload.begin() + static_cast<std::ptrdiff_t>(offset);
    net::Message frame = frame_of({start, start + static_cast<std::ptrdiff_t>(size)});
    Head head{.kind = Kind::kChunk, .epoch = kEpoch, .tag = kTag, .offset = offset, .total = payload.size(),
              .body_size = static_cast<std::uint32_t>(size)};
    change(head);
    return assembly.take_chunk(head, frame);
  }
  std::optional<Dict> chunk(const std::vector<std::uint8_t>& payload, std::size_t offset, std::size_t size) {
    return chunk(payload, offset, size, [](Head&) {});
  }

  void order(Kind kind, std::uint64_t session, std::uint64_t sequence) {
    assembly.check_order({.kind = kind, .session = session, .sequence = sequence});
  }
};

bool holds(const std::optional<Dict>& dict, const std::vector<std::uint8_t>& payload) {
  return dict && dict->manifest == kManifest && dict->tag == kTag && dict->epoch == kEpoch &&
         dict->block->size() == payload.size() &&
         std::memcmp(dict->block->bytes(), payload.data(), payload.size()) == 0;
}

}  // namespace

TEST(session_begins_with_its_hello_and_counts_every_message) {
  Session s;
  s.order(Kind::kHello, 9, 0);
  s.order(Kind::kBeat, 9, 1);
  s.order(Kind::kDict, 9, 2);
  CHECK_ERROR(Code::kSequence, s.order(Kind::kBeat, 9, 2));  // repeated
  CHECK_ERROR(Code::kSequence, s.order(Kind::kBeat, 9, 4));  // one is missing
  CHECK_ERROR(Code::kSequence, s.order(Kind::kBeat, 8, 3));  // of another sender
  CHECK_ERROR(Code::kSequence, s.order(Kind::kHello, 9, 3));
  s.order(Kind::kBye, 9, 3);
}

TEST(session_may_not_begin_otherwise) {
  for (const Kind kind : {Kind::kDict, Kind::kChunk, Kind::kControl, Kind::kBye, Kind::kBeat, Kind::kCancel, Kind::kNudge}) {
    CHECK_ERROR(Code::kSequence, Session().order(kind, 9, 0));
  }
  CHECK_ERROR(Code::kSequence, Session().order(Kind::kHello, 9, 1));
}

TEST(session_has_checksums_throughout_or_not_at_all) {
  for (const std::uint32_t flags : {std::uint32_t{0}, wire::kFlagChecked}) {
    Session s;
    s.assembly.check_order({.kind = Kind::kHello, .flags = flags, .session = 9});
    s.assembly.check_order({.kind = Kind::kBeat, .flags = flags, .session = 9, .sequence = 1});
    CHECK_ERROR(Code::kChecksum, s.assembly.check_order({.kind = Kind::kBeat, .flags = flags ^ wire::kFlagChecked,
                                                         .session = 9, .sequence = 2}));
  }
}

TEST(dict_without_payload_is_complete_at_once) {
  Session s;
  const std::optional<Dict> dict = s.dict(0);
  CHECK(dict && dict->manifest == kManifest && dict->block == nullptr);
  CHECK_EQUAL(s.stats.copies_in.load(), 0u);
}

TEST(inline_payload_is_complete_at_once) {
  Session s;
  const auto payload = pattern::bytes(1, 640);
  CHECK(holds(s.dict(640, &payload), payload));
  CHECK_EQUAL(s.stats.copies_in.load(), 1u);
}

TEST(chunks_of_any_sizes_make_the_payload) {
  pattern::Random random(check::seed());
  Session s;
  for (int round = 0; round < 50; ++round) {
    const auto payload = pattern::bytes(random.next(), 64 * (1 + random.below(100)));
    CHECK(!s.dict(payload.size()));
    std::optional<Dict> done;
    for (std::size_t at = 0; at < payload.size();) {
      CHECK(!done);
      const std::size_t size = std::min<std::size_t>(payload.size() - at, 1 + random.below(1000));
      done = s.chunk(payload, at, size);
      at += size;
    }
    CHECK(holds(done, payload));
  }
}

TEST(chunk_must_continue_its_dict) {
  const auto payload = pattern::bytes(1, 256);
  const auto refused = [&](auto change) {
    Session s;
    s.dict(256);
    CHECK(!s.chunk(payload, 0, 64));
    CHECK_ERROR(Code::kMalformed, s.chunk(payload, 64, 64, change));
  };
  refused([](Head& head) { head.offset = 0; });
  refused([](Head& head) { head.offset = 65; });
  refused([](Head& head) { head.offset = 128; });
  refused([](Head& head) { head.total = 255; });
  refused([](Head& head) { head.total = 257; });
  refused([](Head& head) { head.tag = kTag + 1; });
  refused([](Head& head) { head.epoch = kEpoch + 1; });
}

TEST(chunk_needs_its_dict_and_a_dict_needs_its_chunks) {
  const auto payload = pattern::bytes(1, 128);
  CHECK_ERROR(Code::kSequence, Session().chunk(payload, 0, 64));
  Session s;
  s.dict(128);
  CHECK_ERROR(Code::kSequence, s.dict(128));
  CHECK_ERROR(Code::kSequence, s.dict(0));
  Session over;
  over.dict(128);
  CHECK(holds(over.chunk(payload, 0, 128), payload));
  CHECK_ERROR(Code::kSequence, over.chunk(payload, 0, 128));
}

TEST(cancel_forgets_exactly_the_incomplete_dict) {
  const auto payload = pattern::bytes(1, 128);
  Session s;
  const Head cancel{.kind = Kind::kCancel, .epoch = kEpoch, .tag = kTag};
  CHECK_ERROR(Code::kSequence, s.assembly.take_cancel(cancel));
  s.dict(128);
  CHECK(!s.chunk(payload, 0, 64));
  CHECK_ERROR(Code::kMalformed, s.assembly.take_cancel({.kind = Kind::kCancel, .epoch = kEpoch, .tag = kTag + 1}));
  CHECK_ERROR(Code::kMalformed, s.assembly.take_cancel({.kind = Kind::kCancel, .epoch = kEpoch + 1, .tag = kTag}));
  s.assembly.take_cancel(cancel);
  CHECK_ERROR(Code::kSequence, s.chunk(payload, 64, 64));
  CHECK(!s.dict(128));
  CHECK(holds(s.chunk(payload, 0, 128), payload));
}

TEST(wrong_manifest_is_refused_before_memory_is_taken) {
  Session s;
  net::Message frame = frame_of({3, 0, 0, 0, 0xdd, 0xff, 0xff});
  CHECK_ERROR(Code::kMalformed, s.assembly.take_dict({.kind = Kind::kDict, .total = 1u << 30, .body_size = 7}, frame));
}
