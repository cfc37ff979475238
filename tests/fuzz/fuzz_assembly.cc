// A session: [u8 repair | u16 size | frame] again and again, taken as engine/receiver.cc takes them. Every dict that
// comes out holds exactly the bytes that went in.
//
// `repair` makes up for what random changes break first: bit 0 puts in the expected sequence number, bit 1 the session
// of the hello, bit 2 the size of the body, bit 3 the offset and total of the chunk that comes next, bit 4 the checksum.
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "engine/assembly.h"
#include "engine/frame.h"
#include "fuzz.h"
#include "net/zmq_api.h"
#include "wire/manifest.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT
using wire::Head;
using wire::Kind;

namespace {

constexpr std::size_t kAtKind = 6, kAtFlags = 8, kAtSession = 16, kAtSequence = 24, kAtOffset = 40, kAtTotal = 48, kAtBodySize = 56;
const wire::Limits kLimits{.max_control_bytes = 2048, .max_dict_bytes = 64u << 10};

template <typename Number>
void put(std::vector<std::uint8_t>& frame, std::size_t at, Number value) {
  std::memcpy(frame.data() + at, &value, sizeof value);
}

// What the receiver of a session does with its frames, and what must come of it.
class Session {
 public:
  void take(std::vector<std::uint8_t> bytes, std::uint8_t repair) {
    mend(bytes, repair);
    const Head head = wire::read_head(bytes.data(), bytes.size(), kLimits);
    assembly_.check_order(head);
    if (sequence_++ == 0) session_ = head.session;
    net::Message frame(bytes.size());
    std::memcpy(frame.bytes(), bytes.data(), bytes.size());
    switch (head.kind) {
      case Kind::kDict: return take_dict(head, frame);
      case Kind::kChunk: return take_chunk(head, frame);
      case Kind::kCancel: assembly_.take_cancel(head); return forget();
      default: return;
    }
  }

 private:
  void mend(std::vector<std::uint8_t>& bytes, std::uint8_t repair) const {
    if (bytes.size() < wire::kHeadSize) return;
    if (repair & 1) put(bytes, kAtSequence, sequence_);
    if (repair & 2 && sequence_ > 0) put(bytes, kAtSession, session_);
    if (repair & 4) put(bytes, kAtBodySize, static_cast<std::uint32_t>(bytes.size() - wire::kHeadSize));
    if (repair & 8 && is_open_ && bytes[kAtKind] == static_cast<std::uint8_t>(Kind::kChunk)) {
      put(bytes, kAtOffset, static_cast<std::uint64_t>(payload_.size()));
      put(bytes, kAtTotal, total_);
    }
    if (repair & 16 && bytes[kAtFlags] & wire::kFlagChecked) wire::write_checksum(bytes.data(), bytes.size());
  }

  void take_dict(const Head& head, net::Message& frame) {
    const std::optional<Dict> dict = assembly_.take_dict(head, frame);
    fuzz::require(!is_open_, "a dict may not begin within another");
    const bool inline_payload = (head.flags & wire::kFlagInline) != 0;
    const std::uint8_t* body = body_of(frame);
    const wire::DictBody parts = wire::split_dict_body(body, head.body_size, head.total, inline_payload);
    manifest_.assign(reinterpret_cast<const char*>(body) + parts.manifest_offset, parts.manifest_size);
    total_ = head.total;
    is_open_ = true;
    if (inline_payload) payload_.assign(body + parts.payload_offset, body + parts.payload_offset + head.total);
    check(dict);
  }

  void take_chunk(const Head& head, net::Message& frame) {
    const std::optional<Dict> dict = assembly_.take_chunk(head, frame);
    fuzz::require(is_open_, "a chunk needs its dict");
    payload_.insert(payload_.end(), body_of(frame), body_of(frame) + head.body_size);
    check(dict);
  }

  void check(const std::optional<Dict>& dict) {
    fuzz::require(dict.has_value() == (payload_.size() == total_), "a dict comes out with its last byte");
    if (!dict) return;
    fuzz::require(dict->manifest == manifest_, "the manifest is the same");
    fuzz::require((dict->block ? dict->block->size() : 0) == total_, "the payload has the announced size");
    fuzz::require(total_ == 0 || std::memcmp(dict->block->bytes(), payload_.data(), total_) == 0, "its bytes are the same");
    forget();
  }

  void forget() {
    payload_.clear();
    is_open_ = false;
  }

  Stats stats_;
  Assembly assembly_{stats_};
  std::uint64_t sequence_ = 0, session_ = 0, total_ = 0;
  std::string manifest_;
  std::vector<std::uint8_t> payload_;  // of the open dict, as far as it came
  bool is_open_ = false;
};

bool load() {
  const char* library = std::getenv("ZMQPP_ZMQ_LIBRARY");  // ctest and run.py set it
  net::load_zmq(library == nullptr ? "" : library);
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  [[maybe_unused]] static const bool loaded = load();
  fuzz::Input input(data, size);
  Session session;
  bool goes_on = true;
  while (goes_on && input.left() > 0) {
    const auto repair = input.number<std::uint8_t>();
    const std::size_t announced = input.number<std::uint16_t>();
    const std::size_t length = announced < input.left() ? announced : input.left();
    const std::uint8_t* frame = input.bytes(length);
    goes_on = fuzz::accepts([&] { session.take({frame, frame + length}, repair); });  // a receiver gives up at the first
  }
  return 0;
}
