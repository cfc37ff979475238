#include "engine/outgoing.h"

#include <algorithm>
#include <cstring>

#include "base/align.h"

namespace zmqpp::engine {

std::size_t PayloadReader::copy_next(std::uint8_t* out, std::size_t size) {
  std::size_t copies = 0;
  while (size > 0 && index_ < spans_->size()) {
    const Span& span = (*spans_)[index_];
    const std::size_t padded = align_up(span.size);
    std::size_t step = 0;
    if (within_ < span.size) {
      step = std::min(size, span.size - within_);
      std::memcpy(out, span.bytes + within_, step);
      ++copies;
    } else {
      step = std::min(size, padded - within_);
      std::memset(out, 0, step);  // never send what happened to lie in the chunk
    }
    out += step;
    size -= step;
    within_ += step;
    if (within_ == padded) {
      ++index_;
      within_ = 0;
    }
  }
  return copies;
}

std::uint64_t payload_size(const std::vector<Span>& spans) {
  std::uint64_t total = 0;
  for (const Span& span : spans) total += align_up(span.size);
  return total;
}

}  // namespace zmqpp::engine
