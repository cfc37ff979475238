// Who was not let in through a link's gates, one after another as they are: each address once with each reason.
//
// Owns: the list. Blocks? never. Thread: all safe. Errors: none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace zmqpp::net {

inline constexpr char kUnknown[] = "an unknown address";  // the connection was closed before it could be asked

struct Refusal {
  std::string address;  // without the port, which says nothing
  std::string reason;
};

class Refusals {
 public:
  void note(const std::string& address, const std::string& reason) {
    const std::lock_guard lock(mutex_);
    ++count_;
    const auto same = [&](const auto& entry) { return entry.second == reason; };
    if (address == kUnknown && std::any_of(known_.begin(), known_.end(), same)) return;
    if (known_.size() < kMost && known_.emplace(address, reason).second) news_.push_back({address, reason});
  }

  std::uint64_t count() const {
    const std::lock_guard lock(mutex_);
    return count_;
  }

  std::vector<Refusal> take() {  // what was noted since the last call
    const std::lock_guard lock(mutex_);
    return std::exchange(news_, {});
  }

 private:
  static constexpr std::size_t kMost = 256;  // that are remembered; more are only counted
  mutable std::mutex mutex_;
  std::uint64_t count_ = 0;
  std::set<std::pair<std::string, std::string>> known_;
  std::vector<Refusal> news_;
};

}  // namespace zmqpp::net
