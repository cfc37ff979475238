// Dicts of tensors on devices over every lane. The fake driver's streams are late and overtake one another: a copy that does
// not wait for the right event reads or writes the wrong bytes.
#include <thread>
#include <vector>

#include "check.h"
#include "devices.h"

using namespace devices;  // NOLINT: a program

namespace {

constexpr int kDicts = 40;

struct DevicePair : Pair {
  DevicePair(const std::string& scheme, int from, int to, int i = 0)
      : Pair(device_options(endpoint(scheme, i), "", scheme, from), device_options("", "", scheme, to)) {}
};

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
    compute.write(tensor, bytes);
    const Code code = until_error([&] {
      tickets.push_back(devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, 1));
      if (tickets.size() == 1) pair.receiver->close(0);
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

// Neither a send, nor its wait, nor a receive may become part of a graph; nothing is lost by the refusal.
TEST(a_stream_that_captures_a_graph_is_refused) {
  using Capture = int (*)(void*, int);
  const auto capture = fake<Capture>("fake_capture");
  const DevicePair pair("shm", 0, 0, 60);
  Compute compute(0), arrivals(0);
  const Memory tensor(0, 100'000);
  const SendTicketPtr ticket = devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, 1);
  CHECK(ticket->wait_started(Deadline::after(kLong_s)));
  const std::optional<Dict> dict = receive(*pair.receiver);
  CHECK(dict);
  const std::vector<Target> targets{{tensor.bytes(), 0, tensor.size()}};
  capture(compute.handle(), 1);
  CHECK_ERROR(Code::kUnsupported, devices::send(*pair.sender, {tensor.span()}, {{0, compute.handle()}}, 2));
  CHECK_ERROR(Code::kUnsupported, (ticket->flight()->hold_back(0, compute.handle()), 0));
  CHECK_ERROR(Code::kUnsupported, (start_arrival(dict->block, targets, 0, arrivals.handle(), compute.handle()), 0));
  capture(compute.handle(), 0);
  ticket->flight()->hold_back(0, compute.handle());
  start_arrival(dict->block, targets, 0, arrivals.handle(), compute.handle());
  compute.finish();
  pair.close();
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
