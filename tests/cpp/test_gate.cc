// The one place of a bound socket: given to one peer at a time, however many come, leave, and stop half-way.
#include <sys/socket.h>

#include <netinet/in.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/event.h"
#include "check.h"
#include "net/gate.h"
#include "net/peer_watch.h"
#include "net/socket.h"

using namespace zmqpp;       // NOLINT: a program
using namespace zmqpp::net;  // NOLINT

namespace {

constexpr double kLong_s = 30.0;
constexpr double kHandshake_s = 1.5;  // long enough to be seen by a busy machine
const KeyPair kNone;
// Made for this test alone.
const KeyPair kOurs{"i^Zdh03uDiq(}m}Kmlj]k}9x[7F:n}AvAxTJ5.1X", "&%G}]Ww#5Nhu91O(vIsy5Rwc-&!=uEW{^CXV7cB5"};
const KeyPair kTheirs{"dc#jgMb:qz<@=^z4#AQ>aeFc+ZTY>]0!R86^FWIT", "TBik(sWfljxKn$/L@u0qabK}{NS9d]]-3>7S(:0Q"};

template <typename Holds>
void until(Holds holds) {
  const Deadline deadline = Deadline::after(kLong_s);
  while (!holds()) {
    CHECK(!deadline.expired());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

// A PUSH socket with a gate, as a stream has it.
struct Door {
  Context context{1};
  Event wake;
  Refusals refusals;
  Gate gate;
  Socket socket{context, kPush};
  PeerWatch watch{context, socket, gate};

  explicit Door(const KeyPair& keys) : gate(context, keys, kHandshake_s, wake, refusals) {
    socket.set(kLinger, 0);
    socket.set(kHandshakeIvl, static_cast<int>(kHandshake_s * 1000));
    socket.set_text(kZapDomain, kBindDomain);
    use_keys_to_bind(socket, keys);
    socket.bind("tcp://127.0.0.1:0");
  }
  ~Door() {
    watch.close();
    socket.close();
    gate.close();
  }
  int port() const {
    const std::string endpoint = socket.last_endpoint();
    return std::stoi(endpoint.substr(endpoint.rfind(':') + 1));
  }
  bool connected() {
    watch.read_events();
    return watch.connected();
  }
  bool lost() {
    watch.read_events();
    return watch.lost();
  }
  void send(const char* word) {
    Message frame(std::strlen(word));
    std::memcpy(frame.bytes(), word, frame.size());
    until([&] { return socket.try_send(frame); });
  }
};

// A PULL socket that tries again every 10 ms.
struct Caller {
  Context context{1};
  Socket socket{context, kPull};

  Caller(Door& door, const KeyPair& keys) {
    socket.set(kLinger, 0);
    socket.set(kReconnectIvl, 10);
    use_keys_to_connect(socket, keys);
    call(door);
  }
  ~Caller() { socket.close(); }
  void call(Door& door) { socket.connect(door.socket.last_endpoint()); }
  // As a receiver does: libzmq gives up where it was refused.
  void call_again_if_refused(Door& door) {
    if (const std::uint64_t refused = door.refusals.count(); refused > refused_) {
      refused_ = refused;
      socket.connect_again(door.socket.last_endpoint());
    }
  }
  std::uint64_t refused_ = 0;
  std::string heard() {
    Message frame;
    if (!socket.try_receive(frame)) return "";
    return {reinterpret_cast<const char*>(frame.bytes()), frame.size()};
  }
};

// A greeting for the NULL mechanism, and then nothing.
int half_handshake(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  CHECK(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  std::string greeting = std::string("\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL", 16);
  greeting.resize(64, '\0');
  CHECK(::send(fd, greeting.data(), greeting.size(), MSG_NOSIGNAL) == 64);
  return fd;
}

}  // namespace

TEST(the_place_is_given_once_and_again_only_after_its_holder_has_gone) {
  for (const KeyPair& keys : {kNone, kOurs}) {
    Door door(keys);
    auto first = std::make_unique<Caller>(door, keys);
    until([&] { return door.connected(); });
    Caller second(door, keys);
    until([&] { return door.refusals.count() > 0; });
    door.send("for the first");
    until([&] { return first->heard() == "for the first"; });
    first.reset();
    until([&] { return door.lost(); });
    CHECK(second.heard().empty() && !door.watch.crowded());
    door.watch.admit_next();
    CHECK(!door.watch.connected() && !door.watch.lost());
    second.call(door);
    until([&] { return door.connected(); });
    door.send("for the second");
    until([&] { return second.heard() == "for the second"; });
    CHECK(!door.watch.lost());
  }
}

TEST(who_was_let_in_and_stops_half_way_loses_the_place) {
  Door door(kNone);
  const int stays = half_handshake(door.port());
  until([&] { return door.gate.grant().has_value(); });
  Caller honest(door, kNone);  // waits, for the place is given
  until([&] {
    honest.call_again_if_refused(door);
    return door.connected();
  });
  ::close(stays);
  door.send("for the honest one");
  until([&] { return honest.heard() == "for the honest one"; });
  CHECK(!door.watch.lost() && !door.watch.crowded());
}

TEST(who_was_let_in_and_leaves_half_way_frees_the_place_at_once) {
  Door door(kNone);
  for (int i = 0; i < 20; ++i) ::close(half_handshake(door.port()));
  Caller honest(door, kNone);
  until([&] { return door.connected(); });
  CHECK(!door.watch.crowded());
}

TEST(of_a_crowd_exactly_one_gets_in_whoever_leaves) {
  for (const KeyPair& keys : {kNone, kOurs}) {
    Door door(keys);
    std::vector<std::unique_ptr<Caller>> crowd;
    for (int i = 0; i < 12; ++i) crowd.push_back(std::make_unique<Caller>(door, keys));
    until([&] { return door.connected(); });
    door.send("one");
    std::size_t holder = crowd.size();
    until([&] {
      for (std::size_t i = 0; i < crowd.size(); ++i) {
        if (crowd[i]->heard() == "one") holder = i;
      }
      return holder < crowd.size();
    });
    for (std::size_t i = 0; i < crowd.size(); ++i) {
      if (i != holder) crowd[i].reset();  // before and after they were refused
    }
    door.send("two");
    until([&] { return crowd[holder]->heard() == "two"; });
    CHECK(!door.lost() && !door.watch.crowded());
    crowd[holder].reset();
    until([&] { return door.lost(); });
  }
}

TEST(who_has_no_key_is_counted_and_told_though_it_hangs_up_before_it_says_so) {
  Door door(kOurs);
  Caller right(door, kOurs);
  until([&] { return door.connected(); });
  Caller none(door, kNone);
  until([&] {
    door.watch.read_events();
    return door.refusals.count() >= 1;  // libzmq does not try again
  });
  for (const Refusal& refusal : door.refusals.take()) CHECK(refusal.reason == "it showed no key");
  CHECK(door.watch.connected() && !door.watch.lost() && !door.watch.crowded());
}

TEST(a_wrong_key_never_takes_the_place_and_is_told_once_each_address) {
  Door door(kOurs);
  Caller wrong(door, kTheirs);
  Caller none(door, kNone);
  until([&] {
    door.watch.read_events();
    return door.refusals.count() >= 4;
  });
  CHECK(!door.gate.grant() && !door.watch.connected());
  std::size_t told = 0;
  for (const Refusal& refusal : door.refusals.take()) {
    CHECK(refusal.reason == "wrong key" || refusal.reason == "it showed no key");
    ++told;
  }
  CHECK(told >= 1 && told <= 4);
  Caller right(door, kOurs);
  until([&] { return door.connected(); });
}
