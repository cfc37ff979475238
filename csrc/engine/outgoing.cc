#include "engine/outgoing.h"

#include <algorithm>
#include <cstring>

#include "base/align.h"
#include "engine/frame.h"
#include "memory/copy.h"
#include "wire/manifest.h"

namespace zmqpp::engine {

void PayloadReader::copy_next(std::uint8_t* out, std::size_t size, std::size_t of, device::Copies* copies) {
  while (size > 0 && index_ < spans_->size()) {
    const Span& span = (*spans_)[index_];
    const std::size_t padded = align_up(span.size);
    std::size_t step = 0;
    if (within_ < span.size) {
      step = std::min(size, span.size - within_);
      if (span.ordinal == Span::kHost) {
        memory::copy_bytes(out, span.bytes + within_, step, of);
      } else {
        copies->copy(span.ordinal, out, span.bytes + within_, step);
      }
      copies_ += index_ >= plain_ ? 1 : 0;
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
}

std::uint64_t payload_size(const std::vector<Span>& spans) {
  std::uint64_t total = 0;
  for (const Span& span : spans) total += align_up(span.size);
  return total;
}

bool is_on_device(const std::vector<Span>& spans) {
  return std::any_of(spans.begin(), spans.end(), [](const Span& span) { return span.ordinal != Span::kHost; });
}

std::size_t count_on_devices(const std::vector<Span>& spans) {
  return static_cast<std::size_t>(
      std::count_if(spans.begin(), spans.end(), [](const Span& span) { return span.ordinal != Span::kHost; }));
}

std::uint64_t bytes_on_devices(const std::vector<Span>& spans) {
  std::uint64_t total = 0;
  for (const Span& span : spans) total += span.ordinal == Span::kHost ? 0 : align_up(span.size);
  return total;
}

std::uint32_t manifest_size(Outgoing& item) {
  std::uint32_t size = 0;
  std::memcpy(&size, body_of(item.frame), sizeof size);
  return size;
}

std::vector<Span> body_spans(Outgoing& item) {
  const std::uint8_t* body = body_of(item.frame);
  const std::size_t front = wire::kManifestPrefix + manifest_size(item);
  std::vector<Span> spans{{body + wire::kManifestPrefix, front - wire::kManifestPrefix}};
  if ((item.flags & wire::kFlagInline) != 0) {
    if (item.total > 0) spans.push_back({body + align_up(front), item.total});
  } else {
    spans.insert(spans.end(), item.payload.begin(), item.payload.end());
  }
  return spans;
}

}  // namespace zmqpp::engine
