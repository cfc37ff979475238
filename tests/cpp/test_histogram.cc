// Quantiles of durations are within an eighth of the real ones.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/histogram.h"
#include "pattern.h"

using zmqpp::engine::Histogram;

namespace {

void check_near(std::uint64_t found, std::uint64_t real) {
  const double off = std::abs(static_cast<double>(found) - static_cast<double>(real));
  CHECK(off <= static_cast<double>(real) / 8);
}

}  // namespace

TEST(empty_histogram_says_zero) {
  const Histogram histogram;
  CHECK_EQUAL(histogram.quantile(0.5), 0u);
}

TEST(every_duration_lands_in_its_class) {
  for (unsigned power = 0; power < 64; ++power) {
    for (const std::int64_t by : {-1, 0, 1}) {
      const std::uint64_t ns = (std::uint64_t{1} << power) + static_cast<std::uint64_t>(by);
      if (ns == 0 && power == 0) continue;
      Histogram histogram;
      histogram.add(ns);
      for (const double share : {0.0, 0.5, 1.0}) check_near(histogram.quantile(share), ns);
    }
  }
  Histogram histogram;
  histogram.add(~std::uint64_t{0});
  check_near(histogram.quantile(0.5), ~std::uint64_t{0});
}

TEST(quantiles_are_those_of_the_sorted_durations) {
  pattern::Random random(check::seed());
  for (int round = 0; round < 20; ++round) {
    Histogram histogram;
    std::vector<std::uint64_t> all(1 + random.below(300));
    for (std::uint64_t& ns : all) histogram.add(ns = random.next() >> random.below(64));
    std::sort(all.begin(), all.end());
    for (const double share : {0.0, 0.25, 0.5, 0.9, 0.99, 1.0}) {
      check_near(histogram.quantile(share), all[static_cast<std::size_t>(share * static_cast<double>(all.size() - 1))]);
    }
  }
}

TEST(several_threads_may_count) {
  Histogram histogram;
  std::vector<std::thread> threads;
  for (int id = 0; id < 4; ++id) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) histogram.add(100);
    });
  }
  for (std::thread& thread : threads) thread.join();
  check_near(histogram.quantile(1.0), 100);
}
