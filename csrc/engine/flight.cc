#include "engine/flight.h"

#include <algorithm>

#include "base/error.h"

namespace zmqpp::engine {
namespace {

void refuse_capture(device::Device& device, device::StreamHandle stream) {
  if (!device::is_capturing(device, stream)) return;
  throw Error(Code::kUnsupported, "send",
              "the current stream captures a CUDA graph, which cannot hold a send or its wait; do it before or after the capture");
}

}  // namespace

std::shared_ptr<Flight> Flight::begin(const Streams& streams) {
  auto flight = std::make_shared<Flight>();
  for (const auto& [ordinal, stream] : streams) {
    device::Device& on = device::Device::of(ordinal);
    refuse_capture(on, stream);
    Part& part = flight->parts_.emplace_back(Part{device::Event(on), device::Event(on)});
    part.ready.record(stream);
  }
  return flight;
}

void Flight::start(device::Copies& copies) {
  for (const Part& part : parts_) copies.after(part.ready);
}

void Flight::finish(device::Copies& copies) {
  for (Part& part : parts_) copies.record(part.copied);
}

void Flight::hold_back(device::Ordinal ordinal, device::StreamHandle stream) const {
  for (const Part& part : parts_) {
    device::Device& on = part.copied.device();
    if (on.ordinal() != ordinal) continue;
    refuse_capture(on, stream);
    device::hold_back(on, stream, part.copied);
  }
}

bool Flight::is_over() const {
  return std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.copied.is_done(); });
}

std::vector<device::Ordinal> Flight::devices() const {
  std::vector<device::Ordinal> found;
  for (const Part& part : parts_) found.push_back(part.ready.device().ordinal());
  return found;
}

}  // namespace zmqpp::engine
