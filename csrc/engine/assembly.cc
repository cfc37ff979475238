#include "engine/assembly.h"

#include <cstring>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "engine/frame.h"
#include "memory/copy.h"
#include "memory/heap.h"
#include "wire/manifest.h"

namespace zmqpp::engine {
namespace {

[[noreturn]] void out_of_order(const std::string& detail) {
  throw Error(Code::kSequence, "receive", detail + "; messages were lost or two senders share the address");
}

std::string manifest_of(const std::uint8_t* body, const wire::DictBody& parts) {
  return std::string(reinterpret_cast<const char*>(body) + parts.manifest_offset, parts.manifest_size);
}

}  // namespace

void Assembly::check_order(const wire::Head& head) {
  if (next_sequence_ == 0) {
    if (head.kind != wire::Kind::kHello) out_of_order(std::string("a session began with a ") + kind_name(head.kind));
    session_ = head.session;
    checked_ = (head.flags & wire::kFlagChecked) != 0;
  } else if (head.kind == wire::Kind::kHello || head.session != session_) {
    out_of_order("another session began in the middle of this one");
  }
  if (head.sequence != next_sequence_) {
    out_of_order("message " + std::to_string(head.sequence) + " came where " + std::to_string(next_sequence_) +
                 " was expected");
  }
  if (((head.flags & wire::kFlagChecked) != 0) != checked_) {
    throw Error(Code::kChecksum, "receive", "a message without a checksum in a session that has them, or the reverse");
  }
  ++next_sequence_;
}

std::optional<Dict> Assembly::take_dict(const wire::Head& head, net::Message& frame) {
  if (open_) out_of_order("a dict began before the chunks of the last one were complete");
  const bool inline_payload = (head.flags & wire::kFlagInline) != 0;
  const std::uint8_t* body = body_of(frame);
  const wire::DictBody parts = wire::split_dict_body(body, head.body_size, head.total, inline_payload);
  Dict dict{.manifest = manifest_of(body, parts), .block = nullptr, .tag = head.tag, .epoch = head.epoch};
  if (head.total > 0) dict.block = memory::make_block(slab_.get(), head.total);
  if (head.total > 0 && !inline_payload) {
    open_ = std::move(dict);
    filled_ = 0;
    began_ns_ = now_ns();
    return std::nullopt;
  }
  stats_.receive_ns.add(0);  // all of it is in this message
  if (head.total > 0) {
    std::memcpy(dict.block->bytes(), body + parts.payload_offset, head.total);
    add(stats_.copies_in);
  }
  return dict;
}

std::optional<Dict> Assembly::take_chunk(const wire::Head& head, net::Message& frame) {
  memory::keep_heap_warm();
  if (!open_) out_of_order("a chunk came without its dict");
  if (head.total != open_->block->size() || head.offset != filled_ || head.tag != open_->tag ||
      head.epoch != open_->epoch) {
    throw Error(Code::kMalformed, "receive",
                "chunk at " + std::to_string(head.offset) + " of " + std::to_string(head.total) +
                    " does not continue the dict, which has " + std::to_string(filled_) + " of " +
                    std::to_string(open_->block->size()) + " bytes");
  }
  memory::copy_bytes(open_->block->bytes() + head.offset, body_of(frame), head.body_size, head.total);
  add(stats_.copies_in);
  add(stats_.chunks_received);
  filled_ += head.body_size;
  if (filled_ < head.total) return std::nullopt;
  stats_.receive_ns.add(now_ns() - began_ns_);
  return std::exchange(open_, std::nullopt);
}

void Assembly::take_cancel(const wire::Head& head) {
  if (!open_) out_of_order("a cancel came without an incomplete dict");
  if (head.tag != open_->tag || head.epoch != open_->epoch) {
    throw Error(Code::kMalformed, "receive",
                "a cancel with tag " + std::to_string(head.tag) + " does not fit the incomplete dict, which has tag " +
                    std::to_string(open_->tag));
  }
  open_.reset();
}

}  // namespace zmqpp::engine
