// The engine without Python, for the sanitizers: rings under traffic from several threads, closed in mid-flight.
//
//   stress PATH_OF_LIBZMQ [ROUNDS]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "engine/link.h"
#include "net/zmq_api.h"

using namespace zmqpp;          // NOLINT: a program
using namespace zmqpp::engine;  // NOLINT

namespace {

constexpr std::size_t kPayload = 3u << 20;
const std::string kManifest("\x92\x91\xce\x00\x30\x00\x00\x91\x01", 9);  // [[3 MiB], [dict]]

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

Options options(const std::string& bind, const std::string& connect) {
  Options o;
  o.bind = bind;
  o.connect = connect;
  o.previous = "previous";
  o.next = "next";
  o.chunk_bytes = 256u << 10;
  o.pool_chunks = 4;
  o.receive_limit_bytes = 8u << 20;
  o.heartbeat_s = 0.01;
  return o;
}

// Until the link ends, whatever ends it.
template <typename Body>
std::thread until_error(Body body) {
  return std::thread([body] {
    try {
      while (true) body();
    } catch (const Error&) {
    }
  });
}

void send_dict(Link& link, const std::vector<std::uint8_t>& source) {
  const std::vector<Span> payload{{source.data(), source.size()}};
  if (!link.reserve(link.reservation(kManifest, payload), Deadline::after(5))) return;
  link.send_dict(kManifest, payload, {.deadline = Deadline::after(20)})->wait_copied(Deadline::after(20));
}

// Most are cut off half-way; their source is overwritten and freed as soon as the ticket says that it may be.
void send_impatiently(Link& link, double deadline_s) {
  std::vector<std::uint8_t> source(kPayload, 9);
  const std::vector<Span> payload{{source.data(), source.size()}};
  if (!link.reserve(link.reservation(kManifest, payload), Deadline::after(5))) return;
  try {
    link.send_dict(kManifest, payload, {.deadline = Deadline::after(deadline_s)})->wait_copied(Deadline::after(20));
  } catch (const Error& error) {
    std::fill(source.begin(), source.end(), 0xee);
    if (error.code() != Code::kSendTimeout && error.code() != Code::kConnectTimeout) throw;
  }
}

void send_control(Link& link, std::size_t size) {
  const std::vector<std::uint8_t> body(size, 7);
  if (!link.reserve(size, Deadline::after(5))) return;
  link.send_control(body.data(), size, {.deadline = Deadline::after(20)});
}

void receive_dict(Link& link, std::atomic<int>& count) {
  const RecvTicketPtr ticket = link.inbox().post();
  const std::optional<Dict> dict = link.inbox().wait(ticket, Deadline::after(0.2));
  if (!dict) return link.inbox().cancel(ticket);
  require(dict->block->size() == kPayload, "payload size");
  const std::uint8_t first = dict->block->bytes()[0];
  for (std::size_t i = 0; i < kPayload; i += 4093) require(dict->block->bytes()[i] == first, "payload bytes");
  ++count;
}

int round_of_traffic(int round, std::uint64_t& cancelled) {
  std::atomic<int> dicts{0};
  int attempts = 0;  // of one thread
  std::vector<std::uint8_t> source(kPayload, static_cast<std::uint8_t>(round));
  const auto sender = open_link(options("tcp://127.0.0.1:0", ""));
  const auto receiver = open_link(options("", sender->bound()));
  std::vector<std::thread> threads;
  threads.push_back(until_error([&] { send_dict(*sender, source); }));
  threads.push_back(until_error([&] { send_dict(*sender, source); }));
  threads.push_back(until_error([&] { send_impatiently(*sender, 0.01 * (attempts++ % 8)); }));
  threads.push_back(until_error([&] { send_control(*sender, 100); }));
  threads.push_back(until_error([&] { send_control(*sender, 50'000); }));
  threads.push_back(until_error([&] { receive_dict(*receiver, dicts); }));
  threads.push_back(until_error([&] { receiver->inbox().take_control(Deadline::after(0.2)); }));
  threads.push_back(until_error([&] {
    receiver->stats();
    sender->stats();
    if (const auto error = sender->send_error()) throw *error;
  }));
  std::this_thread::sleep_for(std::chrono::milliseconds(100 + 37 * (round % 5)));
  (round % 2 ? sender : receiver)->close(round % 3 ? 0.5 : 0.0);
  (round % 2 ? receiver : sender)->close(0.1);
  for (std::thread& thread : threads) thread.join();
  cancelled += receiver->stats()["cancelled"];
  return dicts;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  net::load_zmq(argv[1]);
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 10;
  int dicts = 0;
  std::uint64_t cancelled = 0;
  for (int round = 0; round < rounds; ++round) dicts += round_of_traffic(round, cancelled);
  std::printf("%d rounds, %d dicts, %llu cancelled\n", rounds, dicts, static_cast<unsigned long long>(cancelled));
  require(dicts > 0, "no dict arrived");
}
