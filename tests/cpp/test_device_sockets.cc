// Dicts of tensors on devices where memory of the link's own lies in between: the pool that they leave through, the slab that
// they come through, and what their handles say meanwhile.
#include <atomic>
#include <memory>
#include <vector>

#include "check.h"
#include "devices.h"
#include "memory/pinned_slab.h"
#include "memory/pool.h"

using namespace devices;  // NOLINT: a program

namespace {

// Holds a stream up, and with it whatever waits for it.
class Gate {
 public:
  explicit Gate(device::Stream& stream) {
    stream.call([](void* gate) {
      while (!static_cast<std::atomic<bool>*>(gate)->load()) std::this_thread::yield();
    }, &open_);
  }
  ~Gate() { open(); }
  void open() { open_ = true; }

 private:
  std::atomic<bool> open_{false};
};

template <typename Holds>
void until(Holds holds) {
  const Deadline deadline = Deadline::after(kLong_s);
  while (!holds()) {
    CHECK(!deadline.expired());
    std::this_thread::yield();
  }
}

bool is_known_as_pinned(const std::uint8_t* bytes) { return fake<int (*)(const void*)>("fake_is_pinned")(bytes) == 1; }

bool is_pinned(const Dict& dict) {
  const std::uint8_t* end = dict.block->lender() ? dict.block->lender()->pinned_end() : nullptr;
  if (end == nullptr || end < dict.block->bytes() + dict.block->size()) return false;
  return is_known_as_pinned(dict.block->bytes());
}

}  // namespace

TEST(a_pool_has_more_chunks_once_it_is_pinned) {
  constexpr std::size_t kChunk = 4096;
  Event freed;
  memory::Pool pool(kChunk, 2, freed, 5);
  CHECK_EQUAL(pool.count(), 2u);
  std::vector<memory::Chunk> taken;
  for (int i = 0; i < 2; ++i) taken.push_back(pool.try_acquire());
  CHECK(!pool.try_acquire());
  CHECK(!freed.is_signalled());
  pool.pin(device::Device::of(0));
  CHECK(freed.is_signalled());  // who found none looks again
  CHECK_EQUAL(pool.count(), 5u);
  for (int i = 0; i < 3; ++i) taken.push_back(pool.try_acquire());
  CHECK(!pool.try_acquire());
  for (std::size_t i = 0; i < taken.size(); ++i) {
    std::fill_n(taken[i].bytes(), kChunk, static_cast<std::uint8_t>(i));
    CHECK(is_known_as_pinned(taken[i].bytes()));
  }
  for (std::size_t i = 0; i < taken.size(); ++i) CHECK(taken[i].bytes()[kChunk - 1] == i);
  taken.clear();
  CHECK_EQUAL(pool.free_count(), 5u);
  pool.pin(device::Device::of(1));
  CHECK_EQUAL(pool.count(), 5u);
}

// Whoever waits for the ticket waits for the device, not for the network.
TEST(a_large_dict_leaves_its_device_though_nobody_reads) {
  Options from = device_options(endpoint("tcp"), "", "tcp", 0), to = device_options("", "", "tcp", 0);
  from.pinned_pool_bytes = Options().pinned_pool_bytes;
  from.queue_bytes = to.pinned_bytes = 64u << 20;
  to.receive_limit_bytes = 1;
  const Pair pair(from, to);
  pair.wait_peers();
  const Content first(1);
  CHECK(links::send(*pair.sender, first));  // and the receiver's memory is full
  until([&] { return pair.receiver->stats()["dicts_received"] == 1; });
  Compute compute(0);
  const Memory tensor(0, 34u << 20);
  const auto bytes = pattern::bytes(2, tensor.size());
  compute.write(tensor, bytes);
  Gate gate(compute.stream());
  const SendTicketPtr ticket = devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, 2);
  CHECK(ticket->wait_started(Deadline::after(kLong_s)));
  CHECK(!ticket->is_over());
  gate.open();
  CHECK(ticket->wait_copied(Deadline::after(kLong_s)));
  CHECK(ticket->is_over() && !ticket->is_sent());
  CHECK_EQUAL(pair.sender->stats()["in_flight"], 0u);
  const std::optional<Dict> early = receive(*pair.receiver), dict = receive(*pair.receiver);
  CHECK(early && dict);
  first.check(*early);
  CHECK(pattern::matches(2, dict->block->bytes(), bytes.size()));
  CHECK(is_pinned(*dict));
  pair.close();
}

// By the events, before the thread that sends has heard of it.
TEST(a_ticket_asks_the_events_of_its_copies) {
  auto flight = [](const Compute& compute) { return Flight::begin({{compute.ordinal(), compute.handle()}}); };
  Event wake;
  Compute compute(1);
  device::Copies copies(wake);
  Gate gate(compute.stream());
  const FlightPtr begun = flight(compute);
  SendTicket ticket(std::make_shared<Notice>(), begun);
  CHECK(!ticket.is_over());  // its copies were not asked for
  begun->start(copies);
  begun->finish(copies);
  ticket.mark_started();
  CHECK(!ticket.is_over());
  gate.open();
  until([&] { return ticket.is_over(); });
  CHECK(!ticket.is_settled());
  SendTicket failed(std::make_shared<Notice>(), flight(compute));
  failed.fail(Error(Code::kClosed, "send", "closed"));
  CHECK(failed.is_over());
}

TEST(every_stream_that_waits_for_an_arrival_is_held_back) {
  Compute one(0), other(0), arrivals(0);
  const Memory tensor(0, 50'000);
  const auto slab = std::make_shared<memory::PinnedSlab>(device::Device::of(0), 1u << 20);
  auto block = memory::make_block(slab.get(), tensor.size());
  const auto bytes = pattern::bytes(3, tensor.size());
  std::copy(bytes.begin(), bytes.end(), block->bytes());
  Gate gate(arrivals.stream());
  const auto arrival = start_arrival(block, {{tensor.bytes(), 0, tensor.size()}}, 0, arrivals.handle(), one.handle());
  const std::weak_ptr<memory::ReceiveBlock> read = block;
  block.reset();
  arrival->hold_back(other.handle());
  std::vector<std::uint8_t> seen(2 * tensor.size());
  one.stream().copy(seen.data(), tensor.bytes(), tensor.size());
  other.stream().copy(seen.data() + tensor.size(), tensor.bytes(), tensor.size());
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(!one.stream().is_done() && !other.stream().is_done() && !arrival->is_over() && !read.expired());
  gate.open();
  one.finish();
  other.finish();
  CHECK(pattern::matches(3, seen.data(), bytes.size()));
  CHECK(pattern::matches(3, seen.data() + tensor.size(), bytes.size()));
  until([&] { return arrival->is_over() && read.expired(); });
}

// As when what was to be made of the bytes there fails: the device reads on, so the block stays.
TEST(an_arrival_that_is_given_up_keeps_its_block_until_it_was_read) {
  Compute arrivals(0);
  const Memory tensor(0, 50'000);
  const auto slab = std::make_shared<memory::PinnedSlab>(device::Device::of(0), 64u << 10);
  auto block = memory::make_block(slab.get(), tensor.size());
  const std::weak_ptr<memory::ReceiveBlock> read = block;
  Gate gate(arrivals.stream());
  CHECK_ERROR(Code::kMalformed, Arrival::start(block, {{tensor.bytes(), 1, block->size()}}, 0, arrivals.handle()));
  {
    const auto arrival = Arrival::start(block, {{tensor.bytes(), 0, tensor.size()}}, 0, arrivals.handle());
    CHECK(!arrival->is_over());
  }
  block.reset();
  CHECK(!read.expired() && slab->take(tensor.size()) == nullptr);
  gate.open();
  until([&] { return slab->take(tensor.size()) != nullptr; });  // expired a moment before its bytes are free
  CHECK(read.expired());
  arrivals.finish();
  sweep_arrivals();
}

// What comes in pieces, and what is copied out because the segment is in use.
TEST(what_a_segment_does_not_lend_lies_in_pinned_memory_too) {
  int i = 70;
  for (const bool pieces : {true, false}) {
    Options from = device_options(endpoint("shm", i++), "", "shm", 0), to = device_options("", "", "shm", 0);
    if (!pieces) to.shm_hold_bytes = 64;
    const Pair pair(from, to);
    pair.wait_peers();
    Compute compute(0);
    const Memory tensor(0, pieces ? 900'000 : 90'000);
    const auto bytes = pattern::bytes(5, tensor.size());
    compute.write(tensor, bytes);
    for (std::uint64_t tag = 0; tag < 5; ++tag) {
      const SendTicketPtr ticket = devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, tag);
      const std::optional<Dict> dict = receive(*pair.receiver);
      CHECK(dict && pattern::matches(5, dict->block->bytes(), bytes.size()));
      CHECK(is_pinned(*dict));
      CHECK_EQUAL(pair.receiver->stats()["held_bytes"], 0u);  // of the segment
      CHECK(ticket->wait_copied(Deadline::after(kLong_s)));
    }
    pair.close();
  }
}
