// What the two ends of a segment tell each other of devices, over the fake driver, where one process cannot open its own memory:
// how much is pinned, why device memory is refused, and that nothing that an odd sender writes keeps a receiver busy.
#include <chrono>
#include <cstring>
#include <thread>

#include "check.h"
#include "devices.h"
#include "engine/retired_rings.h"

using namespace devices;  // NOLINT: a program
using wire::DeviceState;

namespace {

constexpr std::uint64_t kSession = 7;
constexpr std::size_t kBytes = 4u << 20;

Options ring_options(std::size_t pinned_bytes, LaneChoice lane = LaneChoice::kAuto) {
  Options o = options("", "", lane);
  o.shm_bytes = kBytes;
  o.pinned_bytes = pinned_bytes;
  o.device_ring_bytes = 1u << 20;
  return o;
}

struct Ring {
  Stats sent;
  std::unique_ptr<SegmentWriter> writer;
  memory::Segment mapping;  // by which tests forge
  std::shared_ptr<RingReader> reader;

  Ring(const Options& from, const Options& to)
      : writer(std::make_unique<SegmentWriter>(kSession, from, sent)),
        mapping(memory::Segment::open(writer->name(), wire::payload_offset() + kBytes)) {
    const wire::Hello hello{.segment_bytes = kBytes, .segment = writer->name()};
    reader = std::make_shared<RingReader>(hello, kSession, to, std::make_shared<Stats>());
    CHECK(reader->answer(wire::SegmentState::kAccepted));
  }

  wire::SegmentHead& head() const { return *reinterpret_cast<wire::SegmentHead*>(mapping.bytes()); }
  void state(DeviceState state) const { head().device_state = static_cast<std::uint32_t>(state); }
  DeviceState state() const { return static_cast<DeviceState>(head().device_state.load()); }

  void send() {
    const std::string manifest = manifest_of({64});
    const std::vector<std::uint8_t> bytes(64, 1);
    const std::vector<Span> body{span_of(manifest), {bytes.data(), bytes.size()}};
    PayloadReader from(body, 1);
    const DictMark mark{.total = 64, .manifest_size = static_cast<std::uint32_t>(manifest.size())};
    CHECK(writer->write(wire::EntryKind::kWhole, mark, from, payload_size(body)));
  }

  std::size_t pinned() const {
    const std::optional<Dict> dict = reader->take();
    CHECK(dict);
    const std::uint8_t* end = reader->pinned_end();
    const std::uint8_t* start = dict->block->bytes() - align_up(dict->manifest.size());  // the first body
    return end == nullptr ? 0 : static_cast<std::size_t>(end - start);
  }
};

device::Device& device_0() { return device::Device::of(0); }

}  // namespace

TEST(the_receiver_pins_what_the_sender_has_pinned) {
  for (const bool early : {true, false}) {
    Ring ring(ring_options(1u << 20), ring_options(kBytes));
    if (early) ring.writer->pin(device_0());
    ring.reader->use_device(device_0());
    ring.reader->pin();
    CHECK_EQUAL(ring.reader->pinned_end() != nullptr, early);  // the sender may still learn of devices
    if (!early) ring.writer->pin(device_0());
    ring.send();
    CHECK_EQUAL(ring.pinned(), 1u << 20);
  }
}

TEST(a_receiver_pins_by_itself_for_a_sender_that_has_no_device) {
  Ring ring(ring_options(1u << 20), ring_options(2u << 20));
  ring.reader->use_device(device_0());
  ring.reader->pin();
  ring.send();
  CHECK_EQUAL(ring.pinned(), 2u << 20);
}

TEST(a_sender_that_has_pinned_more_than_there_is_is_malformed) {
  for (const std::uint64_t pinned : {kBytes + wire::kPage, wire::kPage + 1}) {
    Ring ring(ring_options(1u << 20), ring_options(1u << 20));
    ring.head().pinned_bytes = pinned;
    ring.reader->use_device(device_0());
    ring.reader->pin();
    ring.send();
    CHECK_ERROR(Code::kMalformed, ring.reader->take());
    CHECK(ring.reader->pinned_end() == nullptr);
  }
}

TEST(a_refusal_says_why_at_both_ends_and_gives_the_memory_up) {
  const auto refused = [](const Options& to, bool has_device, const std::string& reason) {
    Ring ring(ring_options(1u << 20), to);
    if (has_device) ring.reader->use_device(device_0());
    CHECK(ring.writer->offer_device(device_0()) == DeviceState::kOffered);
    CHECK_EQUAL(device_memories(), 1);
    CHECK(!ring.reader->take());
    CHECK(ring.reader->device_reason().find(reason) != std::string::npos);
    CHECK(ring.writer->offer_device(device_0()) == DeviceState::kRefused);
    CHECK(ring.writer->device_reason().find("next: ") == 0 && ring.writer->device_reason().find(reason) != std::string::npos);
    CHECK_EQUAL(device_memories(), 0);  // though the link goes on
    ring.writer.reset();
    CHECK_EQUAL(count_retired_rings(), 0u);
  };
  const Options any = ring_options(1u << 20);
  refused(any, false, "it receives to no device");
  refused(ring_options(1u << 20, LaneChoice::kShared), true, "it was told to use shm");
  refused(any, true, "opening the peer's device memory: CUDA_ERROR_FAKE");  // CUDA opens no memory of its own process
}

TEST(whatever_a_receiver_writes_as_its_reason_can_be_printed) {
  Ring ring(ring_options(1u << 20), ring_options(1u << 20));
  CHECK(ring.writer->offer_device(device_0()) == DeviceState::kOffered);
  std::memset(ring.head().device_reason, '\n', sizeof ring.head().device_reason);
  ring.state(DeviceState::kRefused);
  CHECK(ring.writer->offer_device(device_0()) == DeviceState::kRefused);
  CHECK_EQUAL(ring.writer->device_reason(), "next: " + std::string(sizeof ring.head().device_reason - 1, '?'));
}

TEST(what_was_accepted_cannot_be_refused_any_more) {
  Ring ring(ring_options(1u << 20), ring_options(1u << 20));
  ring.writer->offer_device(device_0());
  ring.state(DeviceState::kAccepted);
  CHECK(ring.writer->offer_device(device_0()) == DeviceState::kAccepted);
  ring.state(DeviceState::kRefused);
  CHECK_ERROR(Code::kMalformed, ring.writer->offer_device(device_0()));
}

TEST(an_offer_after_the_answer_keeps_no_receiver_awake) {
  Ring ring(ring_options(1u << 20), ring_options(1u << 20));
  ring.writer->offer_device(device_0());
  ring.reader->sleep(ring.reader->bell(), {.dict = true}, Deadline::after(kLong_s));  // until it has answered there is something to do
  CHECK(!ring.reader->take());
  CHECK(ring.state() == DeviceState::kRefused);
  ring.state(DeviceState::kOffered);
  const Deadline deadline = Deadline::after(0.1);
  int returns = 0;
  while (!deadline.expired()) {
    ring.reader->sleep(ring.reader->bell(), {.dict = true}, deadline);
    ++returns;
  }
  CHECK(returns < 20);
  CHECK(!ring.reader->take());
  CHECK(ring.state() == DeviceState::kOffered);  // answered once
}

// The forged words of a receiver that has it open: another process, which the lock stands for here.
TEST(device_memory_is_kept_until_the_receiver_has_closed_it_or_is_gone) {
  for (const bool dies : {true, false}) {
    for (const DeviceState state : {DeviceState::kOpening, DeviceState::kAccepted}) {
      std::optional<Ring> ring(std::in_place, ring_options(1u << 20), ring_options(1u << 20));
      ring->writer->offer_device(device_0());
      CHECK(ring->mapping.hold());
      ring->state(state);
      ring->writer.reset();
      CHECK_EQUAL(count_retired_rings(), 1u);
      sweep_rings();
      CHECK_EQUAL(count_retired_rings(), 1u);
      if (dies) {
        ring.reset();
      } else {
        ring->state(DeviceState::kClosed);
      }
      sweep_rings();
      // The dead are given a moment: their mappings may end after their locks.
      CHECK_EQUAL(count_retired_rings(), dies ? 1u : 0u);
      const Deadline deadline = Deadline::after(kLong_s);
      while (count_retired_rings() > 0 && !deadline.expired()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        sweep_rings();
      }
      CHECK_EQUAL(count_retired_rings(), 0u);
    }
  }
}

TEST(an_offer_that_was_not_answered_is_withdrawn) {
  Ring ring(ring_options(1u << 20), ring_options(1u << 20));
  ring.reader->use_device(device_0());
  ring.writer->offer_device(device_0());
  ring.writer.reset();
  CHECK_EQUAL(count_retired_rings(), 0u);
  CHECK(ring.state() == DeviceState::kWithdrawn);
  CHECK(!ring.reader->take());
  CHECK(ring.state() == DeviceState::kWithdrawn && ring.reader->device_reason().empty());
}
