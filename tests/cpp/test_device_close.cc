// Closing a link while a device is about its tensors: one that is slow holds up nobody else, and one that has failed keeps the
// memory that it may still use.
#include <atomic>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "check.h"
#include "devices.h"

using namespace devices;  // NOLINT: a program

namespace {

// A stream that goes on when it is told to.
class Held {
 public:
  explicit Held(Compute& compute) : compute_(compute) { compute.stream().call(wait, &go_); }
  ~Held() { let_go(); }
  void let_go() {
    go_ = true;
    go_.notify_all();
    compute_.finish();
  }

 private:
  static void wait(void* go) { static_cast<std::atomic<bool>*>(go)->wait(false); }
  Compute& compute_;
  std::atomic<bool> go_{false};
};

void until(const char* what, const std::function<bool()>& holds) {
  const Deadline deadline = Deadline::after(10);  // less than a link drains: it shall not have to
  while (!holds()) {
    if (deadline.expired()) check::fail(__FILE__, __LINE__, what);
    std::this_thread::yield();
  }
}

int mapped_segments() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("/dev/shm/zmqpp-") != std::string::npos;
  return count;
}

std::uint64_t connected(const Link& link) { return link.stats()["receive_peer_connected"]; }

}  // namespace

TEST(a_device_that_is_slow_holds_up_no_stats_and_no_other_half) {
  int i = 0;
  for (const std::string scheme : {"shm", "tcp"}) {
    const auto previous = open_link(device_options(endpoint("ipc", 900 + i), "", scheme, -1));
    Options o = device_options(endpoint("ipc", 910 + i++), "", scheme, 0);
    o.connect = previous->bound();
    const auto link = open_link(o);
    Options patient = device_options("", link->bound(), scheme, 0);
    patient.peer_timeout_s = kLong_s;
    const auto next = open_link(patient);
    CHECK(link->wait_send_peer(Deadline::after(kLong_s)) && link->wait_receive_peer(Deadline::after(kLong_s)));
    Compute compute(0);
    const Memory tensor(0, 100'000);
    Held held(compute);
    const SendTicketPtr ticket = devices::send(*link, {tensor.span()}, {{0, compute.handle()}}, 1);
    std::atomic<bool> closed{false};
    std::thread closing([&] {
      link->close(0);
      closed = true;
    });
    until("the sending half leaves", [&] { return link->send_error().has_value(); });
    until("the receiving half closes", [&] { return connected(*link) == 0; });
    if (scheme == "shm") until("the next hears of it", [&] { return next->receive_error().has_value(); });
    link->lane_reason();
    CHECK(!closed && !ticket->is_settled());  // the tensor is read until now
    held.let_go();
    closing.join();
    CHECK(ticket->is_settled() && !ticket->is_abandoned());
    previous->close(0);
    next->close(0);
  }
}

// Its copies come after all, into what is still there.
TEST(what_a_failed_device_may_still_use_is_never_given_back) {
  using Break = int (*)(int);
  const auto break_device = fake<Break>("fake_break");
  const int before = mapped_segments();
  auto link = open_link(device_options(endpoint("ipc", 920), "", "shm", 0));
  auto next = open_link(device_options("", link->bound(), "shm", -1));
  CHECK(link->wait_send_peer(Deadline::after(kLong_s)));
  Compute compute(0);
  const Memory tensor(0, 100'000);
  Held held(compute);
  const SendTicketPtr ticket = devices::send(*link, {tensor.span()}, {{0, compute.handle()}}, 1);
  break_device(1);
  link->close(0);
  CHECK(ticket->is_settled() && ticket->is_abandoned());
  const Code code = until_error([&] { ticket->wait_copied(Deadline::after(0)); });
  CHECK(code == Code::kClosed || code == Code::kDevice);  // whichever the sender thread saw first
  break_device(0);
  next->close(0);
  next.reset();
  CHECK_EQUAL(mapped_segments(), before + 1);
  held.let_go();
  link.reset();  // the streams end what they were given
  CHECK_EQUAL(mapped_segments(), before + 1);
}
