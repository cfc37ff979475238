// The two ends of a shared segment against each other: every way a dict can take, and everything that must be refused.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/inbox.h"
#include "links.h"
#include "memory/segment.h"

using namespace links;  // NOLINT: a program
using wire::EntryKind;
using wire::SegmentState;

namespace {

constexpr std::uint64_t kSession = 7;
constexpr std::size_t kBytes = 1u << 20;
const std::string kManifest = "\x91\xc0";

Options ring_options(bool checksum = false, std::size_t hold_bytes = 0) {
  Options o = options("", "", LaneChoice::kShared);
  o.shm_bytes = kBytes;
  o.shm_hold_bytes = hold_bytes;
  o.checksum = checksum;
  o.limits.max_dict_bytes = 8u << 20;
  return o;
}

// A dict's body as SharedLane walks it.
struct Body {
  const Content content;
  std::vector<std::vector<std::uint8_t>> buffers;
  std::vector<Span> spans;
  DictMark mark;
  PayloadReader reader;
  std::uint64_t left;

  explicit Body(const Content& from, std::uint32_t epoch = 0)
      : content(from), buffers(content.buffers()), spans(spans_of(content, buffers)),
        mark{.total = payload_size(spans) - align_up(spans[0].size), .tag = content.tag(), .epoch = epoch,
             .manifest_size = static_cast<std::uint32_t>(spans[0].size)},
        reader(spans, 1), left(payload_size(spans)) {}
  Body(const Body&) = delete;

  static std::vector<Span> spans_of(const Content& of, const std::vector<std::vector<std::uint8_t>>& buffers) {
    std::vector<Span> out{span_of(of.manifest())};
    for (const auto& bytes : buffers) {
      if (!bytes.empty()) out.push_back({bytes.data(), bytes.size()});
    }
    return out;
  }
};

struct Ring {
  Stats sent;
  std::shared_ptr<Stats> received = std::make_shared<Stats>();
  SegmentWriter writer;
  memory::Segment mapping;  // a third one, by which tests forge
  std::shared_ptr<RingReader> reader;

  explicit Ring(const Options& o = ring_options())
      : writer(kSession, o, sent),
        mapping(memory::Segment::open(writer.name(), wire::payload_offset() + kBytes)),
        reader(std::make_shared<RingReader>(offer(), kSession, o, received)) {
    CHECK(reader->answer(SegmentState::kAccepted));
  }

  wire::Entry& entry(std::uint64_t number) const {
    return reinterpret_cast<wire::Entry*>(mapping.bytes() + wire::entries_offset())[number - 1];
  }
  std::uint8_t* payload() const { return mapping.bytes() + wire::payload_offset(); }
  wire::Hello offer() const { return {.segment_bytes = writer.payload_bytes(), .segment = writer.name()}; }

  bool whole(const Content& content, std::uint32_t epoch = 0) {
    Body body(content, epoch);
    return writer.write(EntryKind::kWhole, body.mark, body.reader, body.left);
  }

  // The next piece of `body`, of `size` bytes at most. False: no room.
  bool piece(Body& body, bool first, std::uint64_t size) {
    const std::uint64_t step = std::min(body.left, size);
    if (!writer.write(first ? EntryKind::kFirst : EntryKind::kPiece, body.mark, body.reader, step)) return false;
    body.left -= step;
    return true;
  }
};

Content content_of_at_least(std::size_t bytes, std::size_t below = kBytes / 2, std::uint64_t tag = 0) {
  for (;; ++tag) {
    std::size_t size = 0;
    for (const auto& buffer : Content(tag).buffers()) size += buffer.size();
    if (size >= bytes && size < below) return Content(tag);
  }
}

// The n-th that fits several times; tags are apart.
Content small(std::uint64_t n) { return content_of_at_least(1, kBytes / 8, 1000 * n); }

}  // namespace

TEST(whole_dicts_arrive_in_order_as_views) {
  for (const bool checksum : {false, true}) {
    Ring ring(ring_options(checksum, kBytes));
    for (std::uint64_t tag = 0; tag < 300; ++tag) {
      const Content content(tag);
      if (!ring.writer.fits_whole(Body(content).left)) continue;
      CHECK(ring.whole(content));
      const std::optional<Dict> dict = ring.reader->take();
      CHECK(dict && !ring.reader->take());
      content.check(*dict);
    }
    CHECK_EQUAL(ring.received->copies_in.load(), 0u);
    CHECK_EQUAL(ring.received->held_bytes.load(), 0u);
  }
}

TEST(pieces_of_any_size_make_a_dict) {
  pattern::Random random(check::seed());
  for (const bool checksum : {false, true}) {
    Ring ring(ring_options(checksum));
    for (std::uint64_t tag = 0; tag < 60; ++tag) {
      const Content content(tag);
      Body body(content);
      bool first = true;
      while (body.left > 0) {
        CHECK(!ring.reader->take());
        CHECK(ring.writer.room_for_piece() > 0);
        const std::uint64_t most = first ? body.left - kAlign : body.left;  // a first piece is not all of it
        std::uint64_t size = kAlign * random.below(random.one_in(2) ? 4 : 1000);
        size = std::min({most, ring.writer.room_for_piece(), first ? size : std::max<std::uint64_t>(size, kAlign)});
        CHECK(ring.piece(body, first, size));
        first = false;
      }
      const std::optional<Dict> dict = ring.reader->take();
      CHECK(dict);
      content.check(*dict);
    }
  }
}

TEST(few_pieces_are_on_their_way_at_a_time) {
  Ring ring;
  const Content content = content_of_at_least(300u << 10);
  Body body(content);
  CHECK(ring.piece(body, true, 64));
  int pieces = 1;
  for (; ring.writer.room_for_piece() > 0; ++pieces) CHECK(ring.piece(body, false, 64));
  CHECK(pieces > 1 && pieces < 100);
  CHECK(!ring.reader->take());  // takes them, and gives their room back
  CHECK(ring.writer.room_for_piece() > 0);
}

TEST(cancelled_dict_is_forgotten_and_the_next_arrives) {
  Ring ring;
  const Content content = content_of_at_least(100'000);
  Body body(content);
  CHECK(ring.piece(body, true, 640) && ring.piece(body, false, 64));
  CHECK(ring.writer.write_cancel(body.mark));
  CHECK(ring.whole(small(3)));
  const std::optional<Dict> dict = ring.reader->take();
  CHECK(dict);
  small(3).check(*dict);
  CHECK_EQUAL(ring.received->cancelled.load(), 1u);
}

TEST(tensors_may_be_released_in_any_order) {
  pattern::Random random(check::seed());
  Ring ring(ring_options(false, kBytes));
  std::vector<Dict> held;
  int refused = 0;
  for (std::uint64_t tag = 0; tag < 2000; ++tag) {
    const Content content(random.below(500));
    const bool fits = ring.writer.fits_whole(Body(content).left);
    if (fits && ring.whole(content)) {
      held.push_back(std::move(*ring.reader->take()));
    } else {
      refused += fits;
    }
    while (!held.empty() && (random.one_in(2) || held.size() > 20)) {
      const std::size_t at = random.below(held.size());
      Content(held[at].tag).check(held[at]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  CHECK(refused > 0);  // it was full at times
  held.clear();
  CHECK(ring.writer.held_text("next").find(" 0 blocks") != std::string::npos);
  const Content large = content_of_at_least(300u << 10);
  CHECK(ring.whole(large));  // all room is back
  CHECK_EQUAL(ring.received->held_bytes.load(), 0u);
}

TEST(what_a_receiver_keeps_too_long_is_copied_out) {
  Ring ring(ring_options(false, 100'000));
  std::vector<Dict> held;
  for (std::uint64_t tag = 0; tag < 200; ++tag) {
    const Content content(tag);
    Body body(content);
    if (body.mark.total == 0 || !ring.writer.fits_whole(body.left)) continue;
    CHECK(ring.whole(content));
    held.push_back(std::move(*ring.reader->take()));
    CHECK(ring.received->held_bytes.load() <= 100'000);
  }
  CHECK(ring.received->copies_in.load() > 0);
  for (const Dict& dict : held) Content(dict.tag).check(dict);
}

TEST(many_small_tensors_leave_slots_for_others) {
  Ring ring;
  const std::vector<std::uint8_t> byte(1, 5);
  std::vector<Dict> held;
  for (std::uint64_t i = 0; i < 3 * wire::kSlots; ++i) {
    const std::vector<Span> spans{span_of(kManifest), {byte.data(), 1}};
    PayloadReader reader(spans, 1);
    CHECK(ring.writer.write(EntryKind::kWhole, {.total = kAlign, .tag = i, .manifest_size = 2}, reader, 2 * kAlign));
    held.push_back(std::move(*ring.reader->take()));
    CHECK_EQUAL(held.back().tag, i);
  }
}

TEST(full_ring_refuses_and_changes_nothing) {
  Ring ring;
  std::uint64_t sent = 0;
  while (ring.whole(small(5))) ++sent;
  CHECK(sent > 0 && sent <= wire::kSlots && !ring.writer.all_taken());
  for (std::uint64_t i = 0; i < sent; ++i) small(5).check(*ring.reader->take());
  CHECK(!ring.reader->take() && ring.writer.all_taken());
  CHECK(ring.whole(small(5)));
}

TEST(tensors_outlive_the_writer_and_the_reader) {
  std::optional<Dict> dict;
  const Content content = content_of_at_least(10'000);
  {
    Ring ring;
    CHECK(ring.whole(content));
    dict = ring.reader->take();
  }
  content.check(*dict);
}

TEST(offer_is_decided_once) {
  const Options o = ring_options();
  Stats stats;
  SegmentWriter writer(kSession, o, stats);
  const auto received = std::make_shared<Stats>();
  const wire::Hello hello{.segment_bytes = writer.payload_bytes(), .segment = writer.name()};
  const auto reader = std::make_shared<RingReader>(hello, kSession, o, received);
  CHECK(writer.state() == SegmentState::kOffered);
  CHECK(writer.withdraw());
  CHECK(!reader->answer(SegmentState::kAccepted) && writer.state() == SegmentState::kWithdrawn);
  SegmentWriter other(kSession, o, stats);
  const wire::Hello its{.segment_bytes = other.payload_bytes(), .segment = other.name()};
  const auto accepting = std::make_shared<RingReader>(its, kSession, o, received);
  CHECK(accepting->answer(SegmentState::kAccepted) && !other.withdraw());
  CHECK_ERROR(Code::kSharedMemory, RingReader(its, kSession, o, received));  // its name is gone
  CHECK_ERROR(Code::kSharedMemory, RingReader(hello, kSession + 1, o, received));
  CHECK_ERROR(Code::kSharedMemory, RingReader({.segment_bytes = 4096, .segment = writer.name()}, kSession, o, received));
}

TEST(changed_byte_in_the_segment_is_noticed) {
  for (const bool in_pieces : {false, true}) {
    Ring ring(ring_options(true));
    Body body(content_of_at_least(50'000));
    const std::uint64_t size = in_pieces ? body.left / 2 / kAlign * kAlign : body.left;
    CHECK(ring.writer.write(in_pieces ? EntryKind::kFirst : EntryKind::kWhole, body.mark, body.reader, size));
    ring.payload()[size - 70] ^= 4;
    CHECK_ERROR(Code::kChecksum, ring.reader->take());
    CHECK_ERROR(Code::kChecksum, ring.reader->take());  // for good
  }
}

TEST(entry_that_is_none_is_refused_for_good) {
  const auto refused = [](auto change) {
    Ring ring;
    CHECK(ring.whole(content_of_at_least(1000)));
    change(ring.entry(1));
    CHECK_ERROR(Code::kMalformed, ring.reader->take());
    CHECK_ERROR(Code::kMalformed, ring.reader->take());
  };
  refused([](wire::Entry& entry) { entry.kind = static_cast<EntryKind>(0); });
  refused([](wire::Entry& entry) { entry.kind = static_cast<EntryKind>(5); });
  refused([](wire::Entry& entry) { entry.flags = 2; });
  refused([](wire::Entry& entry) { entry.slot = wire::kSlots; });
  refused([](wire::Entry& entry) { entry.offset += 1; });
  refused([](wire::Entry& entry) { entry.offset = kBytes; });
  refused([](wire::Entry& entry) { entry.offset = ~std::uint64_t{63}; });
  refused([](wire::Entry& entry) { entry.total += 64; });
  refused([](wire::Entry& entry) { entry.total = ~std::uint64_t{0}; });
  refused([](wire::Entry& entry) { entry.total = (8u << 20) + 1; });
  refused([](wire::Entry& entry) { entry.body_size_high = 0xffff; });
  refused([](wire::Entry& entry) { entry.body_size_low += 64; });
  refused([](wire::Entry& entry) { entry.manifest_size = 0xffffffff; });
  refused([](wire::Entry& entry) { entry.manifest_size += 64; });
  refused([](wire::Entry& entry) { entry.kind = EntryKind::kFirst; });  // which is all of it
}

TEST(pieces_that_do_not_continue_their_dict_are_refused) {
  const auto refused = [](Code code, EntryKind kind, auto change) {
    Ring ring;
    const Content content = content_of_at_least(10'000);
    Body body(content);
    CHECK(ring.piece(body, true, 640));
    CHECK(!ring.reader->take());
    Body other(content);
    CHECK(ring.writer.write(kind, other.mark, other.reader, kind == EntryKind::kWhole ? other.left : 640));
    change(ring.entry(2));
    CHECK_ERROR(code, ring.reader->take());
  };
  const auto nothing = [](wire::Entry&) {};
  refused(Code::kSequence, EntryKind::kWhole, nothing);
  refused(Code::kSequence, EntryKind::kFirst, nothing);
  refused(Code::kMalformed, EntryKind::kPiece, [](wire::Entry& entry) { entry.tag += 1; });
  refused(Code::kMalformed, EntryKind::kPiece, [](wire::Entry& entry) { entry.epoch += 1; });
  refused(Code::kMalformed, EntryKind::kPiece, [](wire::Entry& entry) { entry.total += 64; });
  refused(Code::kMalformed, EntryKind::kPiece, [](wire::Entry& entry) { entry.manifest_size = 1; });
  refused(Code::kMalformed, EntryKind::kPiece, [](wire::Entry& entry) { entry.body_size_low = 0; });
  refused(Code::kMalformed, EntryKind::kPiece, [](wire::Entry& entry) { entry.body_size_low = 900'000; });
  Ring ring;
  CHECK(ring.writer.write_cancel({}));
  CHECK_ERROR(Code::kSequence, ring.reader->take());
}

TEST(slots_that_were_not_given_cannot_be_released) {
  for (const std::uint64_t slot : {std::uint64_t{5}, std::uint64_t{wire::kSlots}, std::uint64_t{0xffff}}) {
    Ring ring;
    CHECK(ring.whole(small(1)));
    reinterpret_cast<wire::Release*>(ring.mapping.bytes() + wire::releases_offset())->store(std::uint64_t{1} << 16 | slot);
    CHECK_ERROR(Code::kMalformed, ring.whole(small(2)));
  }
}

TEST(head_of_a_segment_must_be_this_one) {
  const auto refused = [](auto change) {
    const Options o = ring_options();
    Stats stats;
    SegmentWriter writer(kSession, o, stats);
    memory::Segment mapping = memory::Segment::open(writer.name(), wire::payload_offset() + kBytes);
    change(*reinterpret_cast<wire::SegmentHead*>(mapping.bytes()));
    const wire::Hello hello{.segment_bytes = kBytes, .segment = writer.name()};
    CHECK_ERROR(Code::kSharedMemory, RingReader(hello, kSession, o, std::make_shared<Stats>()));
  };
  refused([](wire::SegmentHead& head) { head.magic[7] = '0'; });
  refused([](wire::SegmentHead& head) { head.version += 1; });
  refused([](wire::SegmentHead& head) { head.slots *= 2; });
  refused([](wire::SegmentHead& head) { head.session += 1; });
  refused([](wire::SegmentHead& head) { head.payload_offset += 4096; });
  refused([](wire::SegmentHead& head) { head.payload_bytes -= 1; });
}

// ---- through an inbox -------------------------------------------------------------------------------------------

namespace {

struct Receiving {
  Ring ring;
  Event room;
  Stats& stats = *ring.received;
  Inbox inbox{ring_options(), room, std::make_shared<Notice>(), stats};
  Receiving() { inbox.attach(ring.reader, "previous"); }
  ~Receiving() { inbox.detach(); }

  // The next one's tag; -1: there is none.
  std::int64_t next() {
    const std::optional<Dict> dict = inbox.wait(inbox.post(), Deadline::after(0));
    if (!dict) return -1;
    Content(dict->tag).check(*dict);
    return static_cast<std::int64_t>(dict->tag);
  }
};

}  // namespace

TEST(older_epochs_in_the_ring_are_dropped_and_their_room_is_free) {
  Receiving r;
  r.inbox.set_epoch(2);
  const std::uint32_t epochs[] = {1, 2, 1, 3};
  for (std::uint64_t n = 1; n <= 4; ++n) CHECK(r.ring.whole(small(n), epochs[n - 1]));
  CHECK_EQUAL(r.next(), static_cast<std::int64_t>(small(2).tag()));
  CHECK_EQUAL(r.next(), static_cast<std::int64_t>(small(4).tag()));
  CHECK_EQUAL(r.stats.stale.load(), 2u);
  CHECK_EQUAL(r.stats.held_bytes.load(), 0u);
}

TEST(posted_tickets_get_the_dicts_of_the_ring_in_order) {
  Receiving r;
  const auto first = r.inbox.post(), second = r.inbox.post();
  CHECK(r.ring.whole(small(1)) && r.ring.whole(small(2)) && r.ring.whole(small(3)));
  CHECK(r.inbox.is_ready(second));
  small(3).check(*r.inbox.try_receive());
  small(2).check(*r.inbox.wait(second, Deadline::after(0)));
  small(1).check(*r.inbox.wait(first, Deadline::after(0)));
}

TEST(broken_ring_ends_the_link_and_names_its_writer) {
  Receiving r;
  CHECK(r.ring.whole(small(1)) && r.ring.whole(small(2)));
  r.ring.entry(2).slot = wire::kSlots;
  CHECK_EQUAL(r.next(), static_cast<std::int64_t>(small(1).tag()));
  CHECK_ERROR(Code::kMalformed, r.next());
  CHECK(r.inbox.error()->detail().find("previous") != std::string::npos && r.room.is_signalled());
}

TEST(waiting_for_the_ring_ends_with_a_dict_and_with_the_link) {
  Receiving r;
  std::vector<std::thread> threads;
  std::atomic<int> arrived{0};
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      until_error([&] {
        if (const auto dict = r.inbox.wait(r.inbox.post(), Deadline::after(kLong_s))) Content(dict->tag).check(*dict);
        ++arrived;
      });
    });
  }
  for (std::uint64_t tag = 0; tag < 100; ++tag) {
    while (!r.ring.whole(small(5))) std::this_thread::yield();
    if (tag % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // they fall asleep
  }
  while (arrived < 100) std::this_thread::yield();
  r.inbox.fail(Error(Code::kPeerLost, "receive", "lost"));
  for (std::thread& thread : threads) thread.join();
}
