// What a sender is made of: deadlines, the budget of its queue, the walk through a payload, its tickets.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "base/align.h"
#include "base/deadline.h"
#include "check.h"
#include "engine/budget.h"
#include "engine/frame.h"
#include "engine/outgoing.h"
#include "engine/ticket.h"
#include "net/socket.h"
#include "pattern.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT

namespace {

constexpr double kSoon_s = 0.02;
constexpr double kLong_s = 20.0;

struct Buffers {
  std::vector<std::vector<std::uint8_t>> owned;
  std::vector<Span> spans;
  std::vector<std::uint8_t> laid_out;  // as they must arrive

  Buffers(std::uint64_t seed, const std::vector<std::size_t>& sizes) {
    for (const std::size_t size : sizes) {
      owned.push_back(pattern::bytes(seed++, size));
      laid_out.insert(laid_out.end(), owned.back().begin(), owned.back().end());
      laid_out.resize(align_up(laid_out.size()));
    }
    for (const auto& bytes : owned) spans.push_back({bytes.data(), bytes.size()});
  }
};

// In pieces of `piece` bytes; what the reader does not fill stays 0xaa and is noticed.
std::vector<std::uint8_t> read_in_pieces(const std::vector<Span>& spans, std::size_t piece, std::size_t& copies) {
  std::vector<std::uint8_t> out(payload_size(spans), 0xaa);
  PayloadReader reader(spans);
  for (std::size_t at = 0; at < out.size(); at += piece) {
    reader.copy_next(out.data() + at, std::min(piece, out.size() - at), out.size());
  }
  copies = reader.copies();
  return out;
}

}  // namespace

TEST(deadline_passes_once_and_never_overflows) {
  CHECK(Deadline::after(0).expired() && Deadline::after(-5).expired());
  CHECK(!Deadline::after(kLong_s).expired());
  for (const double endless : {std::numeric_limits<double>::infinity(), std::nan(""), 1e300, 3.3e9}) {
    CHECK(Deadline::after(endless).is_never() && !Deadline::after(endless).expired());
  }
  CHECK_EQUAL(Deadline::never().remaining_ms(), 60'000);
  CHECK_EQUAL(Deadline::after(1e6).remaining_ms(), 60'000);
  CHECK_EQUAL(Deadline::after(0).remaining_ms(), 0);
  CHECK_EQUAL(Deadline::after(0.0001).remaining_ms(), 1);  // rounded up, or a poll would spin
}

TEST(sooner_of_two_deadlines) {
  const Deadline soon = Deadline::after(1), late = Deadline::after(2);
  CHECK(soon.sooner(late).at() == soon.at() && late.sooner(soon).at() == soon.at());
  CHECK(Deadline::never().sooner(late).at() == late.at());
}

TEST(payload_reads_the_same_in_pieces_of_any_size) {
  for (const std::vector<std::size_t>& sizes :
       {std::vector<std::size_t>{}, {1}, {63}, {64}, {65}, {1, 1, 1}, {64, 64}, {128, 1, 63, 64, 65, 200}, {1000, 3}}) {
    const Buffers buffers(check::seed(), sizes);
    CHECK_EQUAL(payload_size(buffers.spans), buffers.laid_out.size());
    for (const std::size_t piece : {1, 7, 63, 64, 65, 128, 1000, 4096}) {
      std::size_t copies = 0;
      CHECK(read_in_pieces(buffers.spans, piece, copies) == buffers.laid_out);
      if (piece >= buffers.laid_out.size()) CHECK_EQUAL(copies, sizes.size());
    }
  }
}

TEST(random_payloads_read_the_same_in_random_pieces) {
  pattern::Random random(check::seed());
  for (int round = 0; round < 200; ++round) {
    std::vector<std::size_t> sizes(random.below(6));
    for (std::size_t& size : sizes) size = 1 + random.below(random.one_in(2) ? 130 : 5000);
    const Buffers buffers(random.next(), sizes);
    std::size_t copies = 0;
    CHECK(read_in_pieces(buffers.spans, 1 + random.below(3000), copies) == buffers.laid_out);
    CHECK(copies >= sizes.size());
  }
}

TEST(budget_counts_bytes_and_items) {
  Budget budget(100, 3);
  CHECK(budget.acquire(60, Deadline::after(0)));
  CHECK(!budget.acquire(41, Deadline::after(kSoon_s)));
  CHECK(budget.acquire(40, Deadline::after(0)));
  CHECK(budget.acquire(0, Deadline::after(0)));
  CHECK(!budget.acquire(0, Deadline::after(kSoon_s)));  // a fourth item
  budget.release(100, 1);
  CHECK(budget.acquire(100, Deadline::after(0)));
  CHECK(budget.timeout_error(0.5).detail().find("3 messages, 100 of 100 bytes") != std::string::npos);
}

TEST(budget_lets_one_item_pass_however_large) {
  Budget budget(100, 3);
  CHECK(budget.acquire(1'000'000, Deadline::after(0)));
  CHECK(!budget.acquire(1, Deadline::after(kSoon_s)));
  budget.release(1'000'000, 1);
  CHECK(budget.acquire(1, Deadline::after(0)));
}

TEST(budget_wakes_who_waits_when_room_is_made) {
  Budget budget(10, 1);
  budget.take(10);
  std::thread waiter([&] { CHECK(budget.acquire(10, Deadline::after(kLong_s))); });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  budget.release(10, 1);
  waiter.join();
}

TEST(budget_keeps_its_first_error_and_tells_all) {
  Budget budget(10, 1);
  budget.take(10);
  std::thread waiter([&] { CHECK_ERROR(Code::kPeerLost, budget.acquire(1, Deadline::never().sooner(Deadline::after(kLong_s)))); });
  budget.fail(Error(Code::kPeerLost, "send", "first"));
  budget.fail(Error(Code::kClosed, "send", "second"));
  waiter.join();
  CHECK_ERROR(Code::kPeerLost, budget.acquire(1, Deadline::after(0)));
}

TEST(large_frames_return_to_the_budget_when_they_die) {
  constexpr std::size_t kLarge = 100'000;
  Budget budget(kLarge, 2);
  Stats stats;
  Event freed;
  memory::Pool pool(kFrameFront + wire::kHeadSize + kLarge, 1, freed);
  CHECK(budget.acquire(kLarge, Deadline::after(0)));
  {
    BudgetedFrame message = make_frame(kLarge, budget, pool, stats);
    CHECK_EQUAL(message.held_bytes, 0u);  // libzmq's callback gives them back
    CHECK_EQUAL(body_size(message.frame), kLarge);
    std::memset(message.frame.bytes(), 1, message.frame.size());
    CHECK(!budget.acquire(1, Deadline::after(0)));
    CHECK_EQUAL(pool.free_count(), 0u);
    make_frame(kLarge, budget, pool, stats);  // the pool has no second: from the heap
    CHECK_EQUAL(stats.allocations.load(), 1u);
  }
  CHECK_EQUAL(pool.free_count(), 1u);
  CHECK(budget.acquire(kLarge, Deadline::after(0)));
  CHECK_EQUAL(make_frame(100, budget, pool, stats).held_bytes, 100u);  // small: the sender gives them back
}

TEST(ticket_goes_forward_and_keeps_its_first_outcome) {
  SendTicket ticket(std::make_shared<Notice>());
  CHECK(!ticket.is_settled() && !ticket.wait_copied(Deadline::after(kSoon_s)));
  ticket.mark_copied();
  CHECK(ticket.is_settled() && ticket.is_copied() && !ticket.is_sent());
  CHECK(ticket.wait_copied(Deadline::after(0)) && !ticket.wait_sent(Deadline::after(kSoon_s)));
  ticket.fail(Error(Code::kPeerLost, "send", "lost"));
  ticket.fail(Error(Code::kClosed, "send", "closed"));
  CHECK(ticket.wait_copied(Deadline::after(0)));  // it was, whatever came later
  CHECK_ERROR(Code::kPeerLost, ticket.wait_sent(Deadline::after(kLong_s)));
  SendTicket sent(std::make_shared<Notice>());
  sent.mark_sent();
  sent.fail(Error(Code::kClosed, "send", "closed"));
  CHECK(sent.wait_sent(Deadline::after(0)) && sent.is_copied());
}

TEST(every_waiter_of_a_ticket_hears_of_its_failure) {
  SendTicket ticket(std::make_shared<Notice>());
  std::atomic<int> heard{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const Deadline deadline = i % 2 ? Deadline::never() : Deadline::after(kLong_s);
      CHECK_ERROR(Code::kPeerLost, i < 2 ? ticket.wait_sent(deadline) : ticket.wait_copied(deadline));
      ++heard;
    });
  }
  ticket.fail(Error(Code::kPeerLost, "send", "lost"));
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(heard.load(), 4);
  CHECK(ticket.is_settled() && !ticket.is_copied());
}
