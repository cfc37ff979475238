// The control ring of a shared segment: its two ends against each other, what must be refused, and links that use it.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/control_ring.h"
#include "engine/frame.h"
#include "links.h"
#include "wire/ring.h"

using namespace links;  // NOLINT: a program

namespace {

constexpr std::size_t kLargest = wire::kMaxRecordBody;

struct Ends {
  std::unique_ptr<std::uint8_t[], void (*)(void*)> memory{
      static_cast<std::uint8_t*>(std::aligned_alloc(wire::kPage, wire::payload_offset())), [](void* m) { std::free(m); }};
  std::uint8_t* const segment = memory.get();
  wire::SegmentHead* const head = new (segment) wire::SegmentHead{};
  ControlWriter writer;
  ControlReader reader;

  explicit Ends(bool checksum = false, wire::Limits limits = {}) : writer(segment, checksum), reader(segment, limits) {
    std::memset(segment + wire::control_offset(), 0xee, wire::kControlRing);
  }

  bool write(std::uint64_t tag, std::size_t size, std::uint64_t after = 0) {
    return writer.write({.route = wire::Route::kReply, .tag = tag, .epoch = 3}, after, pattern::bytes(tag, size).data(), size);
  }

  void expect(std::uint64_t tag, std::size_t size, std::uint64_t seen = 0) {
    CHECK(reader.has_record());
    std::optional<ControlFrame> got = reader.take(seen);
    CHECK(got && body_size(got->frame) == size && got->head.body_size == size);
    CHECK(got->head.tag == tag && got->head.epoch == 3 && got->head.route == wire::Route::kReply);
    CHECK(pattern::matches(tag, body_of(got->frame), size));
  }

  wire::ControlRecord& first() const { return *reinterpret_cast<wire::ControlRecord*>(segment + wire::control_offset()); }
};

Code code_of(Ends& ends) {
  return until_error([&] { CHECK(ends.reader.take(0)); });
}

}  // namespace

TEST(messages_of_every_size_come_in_order_round_and_round) {
  pattern::Random random(check::seed());
  for (const bool checksum : {false, true}) {
    Ends ends(checksum);
    std::vector<std::size_t> sizes;
    std::uint64_t sent = 0, received = 0;
    while (received < 3000) {
      const std::size_t most = random.one_in(8) ? kLargest + 1 : 700;
      const std::size_t size = random.below(most);
      if (sent < 3000 && random.below(3) != 0 && ends.write(sent, size)) {
        sizes.push_back(size);
        ++sent;
      } else if (received < sent) {
        ends.expect(received, sizes[received]);
        ++received;
      }
    }
    CHECK(!ends.reader.has_record() && !ends.reader.take(0));
  }
}

TEST(full_ring_refuses_until_something_is_read) {
  Ends ends;
  CHECK(!ends.write(0, kLargest + 1));
  CHECK(ends.write(1, kLargest) && ends.write(2, kLargest));
  CHECK(!ends.write(3, 0));
  ends.expect(1, kLargest);
  CHECK(ends.write(3, kLargest) && !ends.write(4, 1));
  ends.expect(2, kLargest);
  ends.expect(3, kLargest);
}

TEST(message_waits_for_those_that_took_the_socket) {
  Ends ends;
  CHECK(ends.write(1, 10, 0) && ends.write(2, 20, 2));
  ends.expect(1, 10);
  CHECK(ends.reader.has_record() && !ends.reader.take(1));
  CHECK(!ends.reader.has_record());  // nobody shall turn in circles meanwhile
  CHECK(!ends.reader.take(1));
  std::optional<ControlFrame> got = ends.reader.take(2);
  CHECK(got && got->head.tag == 2);
  CHECK(ends.write(3, 5, 2));
  ends.expect(3, 5, 2);
}

TEST(record_that_is_none_is_refused) {
  const auto refused = [](Code code, auto change) {
    Ends ends(true, {.max_control_bytes = 4096});
    CHECK(ends.write(1, 100));
    change(ends);
    CHECK(code_of(ends) == code);
  };
  refused(Code::kMalformed, [](Ends& ends) { ends.first().number = 2; });
  refused(Code::kMalformed, [](Ends& ends) { ends.first().size = 4097; });
  refused(Code::kMalformed, [](Ends& ends) { ends.first().size = 129; });  // beyond what was written
  refused(Code::kMalformed, [](Ends& ends) { ends.first().size = ~std::uint32_t{0}; });
  refused(Code::kMalformed, [](Ends& ends) { ends.first().route = 4; });
  refused(Code::kMalformed, [](Ends& ends) { ends.first().flags = 2; });
  refused(Code::kMalformed, [](Ends& ends) { ends.first().zero = 1; });
  refused(Code::kMalformed, [](Ends& ends) { ends.head->control_written += 32; });
  refused(Code::kMalformed, [](Ends& ends) { ends.head->control_written = wire::kControlRing + 64; });
  refused(Code::kMalformed, [](Ends& ends) { ends.head->control_written = ~std::uint64_t{63}; });
  refused(Code::kChecksum, [](Ends& ends) { ends.segment[wire::control_offset() + 64 + 99] ^= 1; });
}

TEST(reader_that_claims_too_much_fails_the_writer) {
  Ends ends;
  CHECK(ends.write(1, 100));
  ends.head->control_read = 512;
  CHECK(until_error([&] { ends.write(2, 1); }) == Code::kMalformed);
}

// Small ones take the ring, large ones the socket, and so do those that find the ring full.
TEST(order_holds_across_ring_and_socket_and_through_a_relay) {
  Options first = options(endpoint("shm", 1), "", LaneChoice::kShared);
  first.limits.max_control_bytes = 1u << 20;
  const auto engine = open_link(first);
  Options middle = options(endpoint("shm", 2), engine->bound(), LaneChoice::kShared);
  middle.relay = Relay::kForward;
  middle.limits = first.limits;
  const auto relay = open_link(middle);
  Options last = options("", relay->bound(), LaneChoice::kShared);
  last.limits = first.limits;
  const auto end = open_link(last);
  CHECK(engine->wait_send_peer(Deadline::after(kLong_s)) && relay->wait_send_peer(Deadline::after(kLong_s)));

  constexpr std::uint64_t kMessages = 4000;
  const auto size_of = [](std::uint64_t tag) -> std::size_t {
    return tag % 50 == 0 ? kLargest + 1 + tag : tag % 5 == 0 ? 20000 : tag % 300;
  };
  std::uint64_t through_ring = 0;
  std::thread sending([&] {
    for (std::uint64_t tag = 0; tag < kMessages; ++tag) {
      if (tag % 50 == 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // what took the socket is gone then
      const auto body = pattern::bytes(tag, size_of(tag));
      const SendOptions send{.route = wire::Route::kRequest, .tag = tag, .deadline = Deadline::after(kLong_s)};
      if (engine->try_send_control(body.data(), body.size(), send)) {
        ++through_ring;
        continue;
      }
      CHECK(engine->reserve(body.size(), Deadline::after(kLong_s)));
      engine->send_control(body.data(), body.size(), send);
    }
  });
  // The relay's own reader is away for a while, so that its thread passes messages on; then it reads beside it.
  const auto read = [&](Link& link) {
    pattern::Random random(check::seed());
    for (std::uint64_t tag = 0; tag < kMessages; ++tag) {
      std::optional<Control> got = link.inbox()->take_control(Deadline::after(kLong_s));
      CHECK(got && got->tag == tag && body_size(got->frame) == size_of(tag));
      CHECK(pattern::matches(tag, body_of(got->frame), size_of(tag)));
      if (random.one_in(500)) std::this_thread::sleep_for(std::chrono::milliseconds(3));
    }
  };
  std::thread reading([&] { read(*relay); });
  read(*end);
  reading.join();
  sending.join();
  CHECK(relay->stats().at("relayed") == kMessages);
  CHECK(through_ring > kMessages / 10 && through_ring < kMessages);
  engine->close(kLong_s);
  relay->close(kLong_s);
  end->close(0);
}

TEST(relay_that_is_busy_passes_messages_on) {
  const auto engine = open_link(options(endpoint("shm", 3), "", LaneChoice::kShared));
  Options middle = options(endpoint("shm", 4), engine->bound(), LaneChoice::kShared);
  middle.relay = Relay::kForward;
  const auto relay = open_link(middle);
  const auto end = open_link(options("", relay->bound(), LaneChoice::kShared));
  CHECK(engine->wait_send_peer(Deadline::after(kLong_s)) && relay->wait_send_peer(Deadline::after(kLong_s)));
  for (std::uint64_t tag = 0; tag < 20; ++tag) {  // nobody ever reads at the relay
    const auto body = pattern::bytes(tag, 100);
    CHECK(engine->try_send_control(body.data(), 100, {.route = wire::Route::kRequest, .tag = tag}));
    std::optional<Control> got = end->inbox()->take_control(Deadline::after(kLong_s));
    CHECK(got && got->tag == tag && pattern::matches(tag, body_of(got->frame), 100));
  }
  engine->close(kLong_s);
  relay->close(kLong_s);
  end->close(0);
}

TEST(last_words_come_before_the_loss) {
  Pair pair("shm", 5);
  pair.wait_peers();
  for (std::uint64_t tag = 0; tag < 50; ++tag) {
    const auto body = pattern::bytes(tag, 30);
    CHECK(pair.sender->try_send_control(body.data(), 30, {.tag = tag}));
  }
  pair.sender->close(kLong_s);
  for (std::uint64_t tag = 0; tag < 50; ++tag) {
    CHECK(pair.receiver->inbox()->take_control(Deadline::after(kLong_s))->tag == tag);
  }
  CHECK(until_error([&] { pair.receiver->inbox()->take_control(Deadline::after(kLong_s)); }) == Code::kPeerClosed);
  pair.receiver->close(0);
}
