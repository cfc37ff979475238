// Dicts meet receive tickets in order, also when tickets are cancelled, epochs change or the link fails.
#include <poll.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/frame.h"
#include "engine/inbox.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT

namespace {

constexpr std::size_t kLimit = 1000;
const Deadline kNow = Deadline::after(0);

Options limited() {
  Options options;
  options.receive_limit_bytes = kLimit;
  return options;
}

struct Receiving {
  Event room;
  Stats stats;
  Inbox inbox{limited(), room, std::make_shared<Notice>(), stats};

  void put(std::uint64_t tag, std::uint32_t epoch = 0, std::size_t size = 64) {
    inbox.put(Dict{.manifest = "m", .block = memory::ReceiveBlock::make(size), .tag = tag, .epoch = epoch});
  }
  void put_control(std::uint64_t tag, std::uint32_t epoch = 0, std::size_t size = 0) {
    inbox.put(Control{net::Message(wire::kHeadSize + size), wire::Route::kLink, tag, epoch});
  }
  // -1: nothing there.
  std::int64_t take(const RecvTicketPtr& ticket) {
    const std::optional<Dict> dict = inbox.wait(ticket, kNow);
    return dict ? static_cast<std::int64_t>(dict->tag) : -1;
  }
  std::int64_t take_control() {
    const std::optional<Control> control = inbox.take_control(kNow);
    return control ? static_cast<std::int64_t>(control->tag) : -1;
  }
  bool room_was_signalled() {
    pollfd item{room.fd(), POLLIN, 0};
    const bool ready = ::poll(&item, 1, 0) == 1;
    room.drain();
    return ready;
  }
};

}  // namespace

TEST(dicts_go_to_tickets_in_order_whoever_comes_first) {
  Receiving r;
  const auto first = r.inbox.post(), second = r.inbox.post();
  r.put(1);
  CHECK(r.inbox.is_ready(first) && !r.inbox.is_ready(second));
  r.put(2);
  r.put(3);
  const auto third = r.inbox.post();
  CHECK(r.inbox.is_ready(third));
  CHECK_EQUAL(r.take(third), 3);
  CHECK_EQUAL(r.take(second), 2);
  CHECK_EQUAL(r.take(first), 1);
  CHECK_EQUAL(r.take(r.inbox.post()), -1);
}

TEST(what_is_in_front_of_a_dict_does_not_keep_it_from_who_waits_for_it) {
  Receiving r;
  r.put_control(1, 0, 2 * kLimit);
  CHECK(!r.inbox.has_room());
  const auto ticket = r.inbox.post();
  CHECK(!r.inbox.has_room());  // asked for only
  std::int64_t got = -1;
  std::thread waiting([&] {
    if (const auto dict = r.inbox.wait(ticket, Deadline::after(20))) got = static_cast<std::int64_t>(dict->tag);
  });
  pollfd item{r.room.fd(), POLLIN, 0};
  CHECK_EQUAL(::poll(&item, 1, 20'000), 1);
  r.put_control(2, 0, kLimit);  // whoever reads has room, also for more than one
  CHECK(r.inbox.has_room());
  r.put(7);
  CHECK(!r.inbox.has_room());  // as soon as it is here, before its owner has woken
  waiting.join();
  CHECK_EQUAL(got, 7);
  CHECK_EQUAL(r.take_control(), 1);
  CHECK_EQUAL(r.take_control(), 2);
  CHECK(r.inbox.has_room());
}

TEST(nor_from_who_waits_in_a_poll_set) {
  Receiving r;
  r.inbox.arm(true);
  r.put_control(1, 0, 2 * kLimit);
  CHECK(!r.inbox.has_room());
  const auto ticket = r.inbox.post();
  pollfd item{r.room.fd(), POLLIN, 0};
  CHECK_EQUAL(::poll(&item, 1, 0), 1);
  CHECK(r.inbox.has_room());
  r.put(7);
  CHECK(!r.inbox.has_room());
  CHECK_EQUAL(r.take(ticket), 7);
}

TEST(cancelled_ticket_hands_its_dict_to_the_next_in_order) {
  Receiving r;
  const auto first = r.inbox.post(), second = r.inbox.post();
  r.put(1);
  r.inbox.cancel(first);
  CHECK_EQUAL(r.take(second), 1);
  const auto third = r.inbox.post(), fourth = r.inbox.post();
  r.inbox.cancel(third);  // nothing came for it
  r.put(2);
  CHECK_EQUAL(r.take(fourth), 2);
  r.put(3);
  r.put(4);
  r.inbox.cancel(r.inbox.post());  // nobody else waits: it goes back to the front
  CHECK_EQUAL(r.take(r.inbox.post()), 3);
  CHECK_EQUAL(r.take(r.inbox.post()), 4);
}

TEST(waiting_ends_with_the_dict_that_comes_meanwhile) {
  Receiving r;
  const auto ticket = r.inbox.post();
  std::thread putter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    r.put(7);
  });
  CHECK_EQUAL(r.inbox.wait(ticket, Deadline::never())->tag, 7u);
  putter.join();
}

TEST(older_epochs_are_dropped_on_arrival) {
  Receiving r;
  r.inbox.set_epoch(5);
  const auto ticket = r.inbox.post();
  r.put(1, 4);
  r.put_control(1, 4);
  CHECK_EQUAL(r.take_control(), -1);
  r.put(2, 5);
  r.put(3, 6);
  CHECK_EQUAL(r.take(ticket), 2);
  CHECK_EQUAL(r.take(r.inbox.post()), 3);
  CHECK_EQUAL(r.stats.stale.load(), 2u);
}

TEST(older_epochs_are_dropped_from_what_waits) {
  Receiving r;
  r.put(1, 0, 600);
  r.put_control(1, 0, 300);
  r.put(2, 1, 600);
  CHECK(!r.inbox.has_room());
  r.inbox.set_epoch(1);
  CHECK(r.inbox.has_room() && r.room_was_signalled());
  CHECK_EQUAL(r.take_control(), -1);
  CHECK_EQUAL(r.take(r.inbox.post()), 2);
}

TEST(ticket_with_a_dict_of_an_older_epoch_waits_for_the_next) {
  Receiving r;
  const auto first = r.inbox.post(), second = r.inbox.post();
  r.put(1, 0);
  r.inbox.set_epoch(1);
  CHECK_EQUAL(r.take(first), -1);
  r.put(2, 1);
  r.put(3, 1);
  CHECK_EQUAL(r.take(first), 2);  // its place is still in front
  CHECK_EQUAL(r.take(second), 3);
}

TEST(room_ends_at_the_limit_and_comes_back_when_dicts_are_taken) {
  Receiving r;
  r.put(1, 0, kLimit);
  CHECK(!r.inbox.has_room());
  CHECK_EQUAL(r.take(r.inbox.post()), 1);
  CHECK(r.room_was_signalled() && r.inbox.has_room());
  r.put(2, 0, 10 * kLimit);  // one is always accepted
  const auto ticket = r.inbox.post();
  CHECK(!r.inbox.has_room());  // a ticket has it, the caller does not
  CHECK_EQUAL(r.take(ticket), 2);
  CHECK(r.room_was_signalled() && r.inbox.has_room());
  r.put(3, 0, 1);
  CHECK_EQUAL(r.take(r.inbox.post()), 3);
  CHECK(!r.room_was_signalled());  // nobody was told that there is none
}

TEST(control_messages_come_in_order_and_are_counted) {
  Receiving r;
  for (std::uint64_t tag = 0; tag < kMaxControls; ++tag) r.put_control(tag);
  CHECK(!r.inbox.has_room());
  for (std::int64_t tag = 0; tag < static_cast<std::int64_t>(kMaxControls); ++tag) CHECK_EQUAL(r.take_control(), tag);
  CHECK(r.inbox.has_room());
  CHECK_EQUAL(r.take_control(), -1);
}

TEST(what_came_before_a_failure_is_still_handed_out) {
  Receiving r;
  const auto first = r.inbox.post(), second = r.inbox.post();
  r.put(1);
  r.put_control(9);
  r.inbox.fail(Error(Code::kPeerLost, "receive", "lost"));
  r.inbox.fail(Error(Code::kClosed, "receive", "closed"));
  CHECK(r.inbox.is_ready(first) && r.inbox.is_ready(second));
  CHECK_EQUAL(r.take(first), 1);
  CHECK_EQUAL(r.take_control(), 9);
  CHECK_ERROR(Code::kPeerLost, r.take(second));
  CHECK_ERROR(Code::kPeerLost, r.take_control());
  CHECK_ERROR(Code::kPeerLost, r.take(r.inbox.post()));
}

TEST(failure_wakes_every_waiter) {
  Receiving r;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] { CHECK_ERROR(Code::kPeerLost, r.inbox.wait(r.inbox.post(), Deadline::never())); });
  }
  threads.emplace_back([&] { CHECK_ERROR(Code::kPeerLost, r.inbox.take_control(Deadline::after(20))); });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  r.inbox.fail(Error(Code::kPeerLost, "receive", "lost"));
  for (std::thread& thread : threads) thread.join();
}

TEST(tickets_may_be_posted_taken_and_cancelled_while_dicts_come) {
  Receiving r;
  constexpr std::uint64_t kDicts = 3000;
  std::atomic<std::uint64_t> sum{0}, count{0};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    for (std::uint64_t tag = 1; tag <= kDicts; ++tag) r.put(tag, 0, 1);
  });
  for (int id = 0; id < 3; ++id) {
    threads.emplace_back([&, id] {
      for (int i = 0; count < kDicts; ++i) {
        const auto ticket = r.inbox.post();
        const auto dict = (i + id) % 5 ? r.inbox.wait(ticket, Deadline::after(0.001)) : std::nullopt;
        if (!dict) {
          r.inbox.cancel(ticket);
          continue;
        }
        sum += dict->tag;
        ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(sum.load(), kDicts * (kDicts + 1) / 2);
}
