// Dicts of tensors on devices over every lane. The fake driver's streams are late and overtake one another: a copy that does
// not wait for the right event reads or writes the wrong bytes.
#include <thread>
#include <vector>

#include "check.h"
#include "devices.h"

using namespace devices;  // NOLINT: a program

namespace {

constexpr int kDicts = 40;

Options device_options(const std::string& bind, const std::string& connect, const std::string& scheme, int device) {
  Options o = options(bind, connect, lane_of(scheme));
  o.device = device;
  o.shm_bytes = 2u << 20;
  o.pinned_bytes = 1u << 20;
  return o;
}

struct DevicePair : Pair {
  DevicePair(const std::string& scheme, int from, int to, int i = 0)
      : Pair(device_options(endpoint(scheme, i), "", scheme, from), device_options("", "", scheme, to)) {}
};

std::vector<std::size_t> sizes_of(std::uint64_t tag) {
  pattern::Random random(tag ^ (check::seed() << 48));
  std::vector<std::size_t> sizes(1 + random.below(4));
  for (std::size_t& size : sizes) size = 1 + random.below(random.one_in(4) ? 900'000 : 100'000);
  return sizes;
}

// Writes, sends, waits on its stream, and writes over it: nothing of it on the host but the order of calls.
void send_from(Link& link, int ordinal, int dicts) {
  Compute compute(ordinal);
  std::vector<std::vector<std::uint8_t>> sources;  // of the writes, until the stream is done
  std::vector<Memory> tensors;
  for (int i = 0; i < 4; ++i) tensors.emplace_back(ordinal, 1u << 20);
  for (int tag = 0; tag < dicts; ++tag) {
    std::vector<Span> payload;
    const std::vector<std::size_t> sizes = sizes_of(tag);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      compute.write(tensors[i], sources.emplace_back(pattern::bytes((tag << 8) + i, sizes[i])));
      payload.push_back({tensors[i].bytes(), sizes[i], ordinal});
    }
    const SendTicketPtr ticket = send(link, payload, {{ordinal, compute.handle()}}, tag);
    CHECK(ticket->wait_started(Deadline::after(kLong_s)));
    ticket->flight()->hold_back(ordinal, compute.handle());
    const auto& junk = sources.emplace_back(1u << 20, 0xee);
    for (const Memory& tensor : tensors) compute.write(tensor, junk);
  }
  compute.finish();
}

// Takes several before it looks at the first: what the device has not read yet must not be written again meanwhile.
class Consumer {
 public:
  explicit Consumer(int ordinal) : compute_(ordinal), arrivals_(ordinal) {
    for (std::uint64_t i = 0; i < kAhead * 4; ++i) tensors_.emplace_back(ordinal, 1u << 20);
  }

  void take(Link& link, std::uint64_t tag) {
    const std::optional<Dict> dict = receive(link);
    CHECK(dict);
    CHECK_EQUAL(dict->tag, tag);
    std::vector<Target> targets;
    std::size_t at = 0;
    for (const std::size_t size : sizes_of(tag)) {
      targets.push_back({tensor(tag, targets.size()).bytes(), at, size});
      at += align_up(size);
    }
    CHECK_EQUAL(dict->block->size(), at);
    start_arrival(dict->block, targets, compute_.ordinal(), arrivals_.handle(), compute_.handle());
  }

  void check(std::uint64_t tag) {
    const std::vector<std::size_t> sizes = sizes_of(tag);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      CHECK(pattern::matches((tag << 8) + i, compute_.read(tensor(tag, i), sizes[i]).data(), sizes[i]));
    }
  }

  static constexpr std::uint64_t kAhead = 3;

 private:
  const Memory& tensor(std::uint64_t tag, std::size_t index) const { return tensors_[tag % kAhead * 4 + index]; }

  Compute compute_, arrivals_;
  std::vector<Memory> tensors_;
};

void receive_on(Link& link, int ordinal, std::uint64_t dicts) {
  Consumer consumer(ordinal);
  for (std::uint64_t tag = 0; tag < dicts + Consumer::kAhead - 1; ++tag) {
    if (tag < dicts) consumer.take(link, tag);
    if (tag + 1 >= Consumer::kAhead) consumer.check(tag + 1 - Consumer::kAhead);
  }
}

void traffic(const std::string& scheme, int from, int to, int i) {
  const DevicePair pair(scheme, from, to, i);
  std::thread sending([&] { send_from(*pair.sender, std::max(from, 0), kDicts); });
  receive_on(*pair.receiver, std::max(to, 0), kDicts);
  sending.join();
  CHECK_EQUAL(pair.sender->stats()["in_flight"], 0u);
  pair.close();
  sweep_arrivals();
}

}  // namespace

TEST(what_computes_and_what_copies_keep_their_order_over_every_lane) {
  int i = 0;
  for (const std::string& scheme : kSchemes) {
    traffic(scheme, 0, 1, i++);
    traffic(scheme, 1, 1, i++);
  }
}

// Such links pin their memory with the first tensor that needs it, or let CUDA stage what arrives.
TEST(links_that_were_not_told_of_devices_do_it_too) {
  int i = 10;
  for (const std::string& scheme : kSchemes) {
    traffic(scheme, -1, -1, i++);
    traffic(scheme, -1, 0, i++);
  }
}

TEST(a_dict_may_lie_on_several_devices_and_the_host) {
  int i = 20;
  for (const std::string& scheme : kSchemes) {
    const DevicePair pair(scheme, 0, 0, i++);
    Compute zero(0), one(1);
    const Memory left(0, 300'000), right(1, 200'000);
    const auto a = pattern::bytes(1, left.size()), b = pattern::bytes(2, right.size()), c = pattern::bytes(3, 1000);
    zero.write(left, a);
    one.write(right, b);
    const SendTicketPtr ticket = devices::send(*pair.sender, {left.span(), {c.data(), c.size()}, right.span()},
                                               {{0, zero.handle()}, {1, one.handle()}}, 7);
    CHECK(ticket->flight()->devices() == (std::vector<int>{0, 1}));
    const std::optional<Dict> dict = receive(*pair.receiver);
    CHECK(dict);
    const std::uint8_t* bytes = dict->block->bytes();
    CHECK(pattern::matches(1, bytes, a.size()));
    CHECK(pattern::matches(3, bytes + align_up(a.size()), c.size()));
    CHECK(pattern::matches(2, bytes + align_up(a.size()) + align_up(c.size()), b.size()));
    CHECK(ticket->wait_copied(Deadline::after(kLong_s)));
    pair.close();
  }
}

// Dicts of the host's memory behind one that a device has not copied yet stay behind it.
TEST(dicts_keep_their_order_whatever_their_memory) {
  int i = 30;
  for (const std::string& scheme : kSchemes) {
    const DevicePair pair(scheme, 0, 0, i++);
    Compute compute(0);
    const Memory tensor(0, 500'000);
    const auto bytes = pattern::bytes(9, tensor.size());
    compute.write(tensor, bytes);
    std::thread sending([&] {
      for (int tag = 0; tag < 20; tag += 2) {
        devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, tag);
        CHECK(links::send(*pair.sender, Content(tag + 1)));
      }
    });
    for (std::uint64_t tag = 0; tag < 20; ++tag) {
      const std::optional<Dict> dict = receive(*pair.receiver);
      CHECK(dict);
      CHECK_EQUAL(dict->tag, tag);
      if (tag % 2 == 0) {
        CHECK(pattern::matches(9, dict->block->bytes(), bytes.size()));
      } else {
        Content(tag).check(*dict);
      }
    }
    sending.join();
    pair.close();
  }
}

// The receiver's death fails every ticket, once no device reads from the tensors or writes into freed memory.
TEST(a_lost_receiver_fails_what_is_under_way) {
  int i = 40;
  for (const std::string& scheme : kSchemes) {
    const DevicePair pair(scheme, 0, 0, i++);
    pair.wait_peers();
    Compute compute(0);
    const Memory tensor(0, 1'500'000);
    const auto bytes = pattern::bytes(4, tensor.size());
    std::vector<SendTicketPtr> tickets;
    const Code code = until_error([&] {
      compute.write(tensor, bytes);
      tickets.push_back(devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, 1));
      if (tickets.size() == 3) pair.receiver->close(0);
    });
    CHECK(code == Code::kPeerLost);
    const Deadline deadline = Deadline::after(kLong_s);
    for (const SendTicketPtr& ticket : tickets) {
      while (!ticket->is_settled()) CHECK(!deadline.expired());
    }
    compute.finish();
    pair.close(0);
  }
}

// A dict that its deadline cuts off is settled only when the device has stopped reading; the link goes on.
TEST(a_deadline_takes_a_dict_back_once_its_copies_have_landed) {
  int i = 50;
  for (const std::string& scheme : kSchemes) {
    const DevicePair pair(scheme, 0, 0, i++);
    pair.wait_peers();
    Compute compute(0);
    const Memory tensor(0, 1'900'000);
    const auto bytes = pattern::bytes(5, tensor.size());
    compute.write(tensor, bytes);
    std::vector<SendTicketPtr> tickets;
    Code code{};
    while (true) {  // nobody receives: sooner or later there is no room
      try {
        tickets.push_back(devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, tickets.size(), 0.3));
        if (!tickets.back()->wait_copied(Deadline::after(kLong_s))) continue;
      } catch (const Error& e) {
        code = e.code();
        break;
      }
    }
    CHECK(code == Code::kPoolTimeout);
    CHECK(tickets.back()->is_settled());
    for (std::size_t tag = 0; tag + 1 < tickets.size(); ++tag) {
      const std::optional<Dict> dict = receive(*pair.receiver);
      CHECK(dict && pattern::matches(5, dict->block->bytes(), bytes.size()));
    }
    CHECK(links::send(*pair.sender, Content(99)));
    const std::optional<Dict> last = receive(*pair.receiver);
    CHECK(last);
    Content(99).check(*last);
    pair.close();
  }
}
