#include "wire/control_record.h"

#include <string>

#include "base/error.h"

namespace zmqpp::wire {
namespace {

void require(bool holds, const char* what, std::uint64_t found) {
  if (holds) return;
  throw Error(Code::kMalformed, "receive",
              std::string("shared segment: ") + what + " (found " + std::to_string(found) + ")");
}

}  // namespace

void check_record(const ControlRecord& record, std::uint64_t number, std::uint64_t held, const Limits& limits) {
  require(record.number == number, "a control message with another number than the next", record.number);
  require(record.size <= kMaxRecordBody, "a control message that cannot be in the ring", record.size);
  require(record.size <= limits.max_control_bytes, "a control message beyond the limit", record.size);
  require(record_bytes(record.size) <= held, "a control message larger than what was written", record.size);
  require(record.route <= static_cast<std::uint8_t>(Route::kNotice), "an unknown route", record.route);
  require((record.flags & ~kRecordChecked) == 0 && record.zero == 0, "unknown flags", record.flags);
}

std::uint64_t check_held(std::uint64_t written, std::uint64_t read) {
  const std::uint64_t held = written - read;
  require(held <= kControlRing && held % sizeof(ControlRecord) == 0, "more in the control ring than it can hold", held);
  return held;
}

}  // namespace zmqpp::wire
