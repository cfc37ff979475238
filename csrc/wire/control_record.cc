#include "wire/control_record.h"

#include "wire/segment_check.h"

namespace zmqpp::wire {

void check_record(const ControlRecord& record, std::uint64_t number, std::uint64_t held, const Limits& limits) {
  require_valid(record.number == number, "a control message with another number than the next", record.number);
  require_valid(record.size <= kMaxRecordBody, "a control message that cannot be in the ring", record.size);
  require_valid(record.size <= limits.max_control_bytes, "a control message beyond the limit", record.size);
  require_valid(record_bytes(record.size) <= held, "a control message larger than what was written", record.size);
  require_valid(record.route <= static_cast<std::uint8_t>(Route::kNotice), "an unknown route", record.route);
  require_valid((record.flags & ~kRecordChecked) == 0 && record.zero == 0, "unknown flags", record.flags);
}

std::uint64_t check_held(std::uint64_t written, std::uint64_t read) {
  const std::uint64_t held = written - read;
  require_valid(held <= kControlRing && held % sizeof(ControlRecord) == 0, "more in the control ring than it can hold", held);
  return held;
}

}  // namespace zmqpp::wire
