// Everything at once from several threads, closed in mid-flight: what the sanitizers are to look at.
// ZMQPP_STRESS_ROUNDS: how often; a few seconds by default.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <thread>
#include <vector>

#include "check.h"
#include "links.h"

using namespace links;  // NOLINT: a program

namespace {

struct Totals {
  std::uint64_t dicts = 0, cancelled = 0;
};

int rounds() {
  const char* given = std::getenv("ZMQPP_STRESS_ROUNDS");
  return given == nullptr ? 16 : std::atoi(given);
}

// Each thread goes on until the link ends, and must end with it.
std::vector<std::thread> everything(const Pair& pair, Arrivals& arrivals) {
  std::vector<std::thread> threads;
  const auto forever = [&threads](auto body) { threads.emplace_back([body]() mutable { until_error(body); }); };
  const auto sending = [&](int thread, auto deadline_s) {
    forever([&pair, thread, deadline_s, number = std::uint64_t{0}]() mutable {
      send(*pair.sender, Content(tag_of(thread, number)), deadline_s(number));
      ++number;
    });
  };
  const auto patient = [](std::uint64_t) { return kLong_s; };
  sending(0, patient);
  sending(1, patient);
  sending(2, [](std::uint64_t number) { return 2e-4 * double(number % 16); });  // most are cut off half-way
  forever([&] { send_control(*pair.sender, 1, 100); });
  forever([&] { send_control(*pair.sender, 2, 50'000); });
  forever([&] { pair.receiver->inbox()->take_control(Deadline::after(0.2)); });
  forever([&, held = std::deque<Dict>()]() mutable {
    std::optional<Dict> dict = receive(*pair.receiver, 0.2);
    if (!dict) return;
    arrivals.take(*dict);
    const std::size_t most = dict->tag % 8;
    held.push_back(std::move(*dict));
    while (held.size() > most) {
      Content(held.front().tag).check(held.front());  // nobody wrote to it meanwhile
      held.pop_front();
    }
  });
  forever([&] {
    pair.sender->stats();
    pair.receiver->stats();
    pair.receiver->receive_trouble();
    if (const auto error = pair.sender->send_error()) throw *error;
  });
  return threads;
}

void round_of_traffic(int round, Totals& totals) {
  pattern::Random random(check::seed() + round);
  const Pair pair(kSchemes[round % kSchemes.size()], round);
  Arrivals arrivals(true);
  std::vector<std::thread> threads = everything(pair, arrivals);
  std::this_thread::sleep_for(std::chrono::microseconds(random.below(round % 4 ? 150'000 : 3'000)));
  const double linger_s = random.one_in(2) ? 0.0 : 0.3;
  const bool sender_first = random.one_in(2);
  (sender_first ? pair.sender : pair.receiver)->close(linger_s);
  std::this_thread::sleep_for(std::chrono::microseconds(random.one_in(2) ? random.below(20'000) : 0));
  (sender_first ? pair.receiver : pair.sender)->close(linger_s);
  for (std::thread& thread : threads) thread.join();
  totals.dicts += arrivals.count();
  totals.cancelled += pair.receiver->stats()["cancelled"];
}

}  // namespace

TEST(closing_in_mid_flight_ends_every_wait_and_spoils_no_dict) {
  Totals totals;
  for (int round = 0; round < rounds(); ++round) round_of_traffic(round, totals);
  std::printf("    %llu dicts, %llu cancelled\n", static_cast<unsigned long long>(totals.dicts),
              static_cast<unsigned long long>(totals.cancelled));
  CHECK(totals.dicts > 0);
}
