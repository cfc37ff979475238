// Pairs of links and dicts that both of their ends can make: all that these tests know of engine/link.h.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/align.h"
#include "check.h"
#include "engine/link.h"
#include "pattern.h"

namespace links {

using namespace zmqpp;          // NOLINT: tests
using namespace zmqpp::engine;  // NOLINT

// A bound that is never reached: what takes longer has hung.
inline constexpr double kLong_s = 30.0;

// A scheme is "tcp" or "ipc", whose payload takes the socket, or "shm": a Unix socket and a shared segment.
inline const std::vector<std::string> kSchemes{"tcp", "ipc", "shm"};

inline LaneChoice lane_of(const std::string& scheme) {
  return scheme == "shm" ? LaneChoice::kShared : LaneChoice::kSocket;
}

// The i-th of an endpoint's tests, so that a path is never used twice.
inline std::string endpoint(const std::string& scheme, int i = 0) {
  if (scheme == "tcp") return "tcp://127.0.0.1:0";
  return "ipc:///tmp/zmqpp-test-" + std::to_string(::getpid()) + "-" + std::to_string(i);
}

// Small enough that every boundary is crossed by dicts that a sanitized build can move.
inline Options options(const std::string& bind, const std::string& connect, LaneChoice lane = LaneChoice::kSocket) {
  Options o;
  o.lane = lane;
  o.shm_bytes = 1u << 20;
  o.bind = bind;
  o.connect = connect;
  o.previous = "previous";
  o.next = "next";
  o.chunk_bytes = 64u << 10;
  o.inline_bytes = 4u << 10;
  o.pool_chunks = 4;
  o.queue_bytes = 2u << 20;
  o.receive_limit_bytes = 2u << 20;
  o.heartbeat_s = 0.05;
  return o;
}

struct Pair {
  std::shared_ptr<Link> sender, receiver;

  explicit Pair(const std::string& scheme, int i = 0)
      : sender(open_link(options(endpoint(scheme, i), "", lane_of(scheme)))),
        receiver(open_link(options("", sender->bound(), lane_of(scheme)))) {}
  Pair(const Options& from, Options to) : sender(open_link(from)) {
    to.connect = sender->bound();
    receiver = open_link(to);
  }
  void wait_peers() const {
    CHECK(sender->wait_send_peer(Deadline::after(kLong_s)));
    CHECK(receiver->wait_receive_peer(Deadline::after(kLong_s)));
  }
  void close(double linger_s = kLong_s) const {
    sender->close(linger_s);
    receiver->close(0);
  }
};

// What a tag stands for: buffers of random sizes, mostly around what makes a difference, filled with its pattern.
class Content {
 public:
  explicit Content(std::uint64_t tag, const Options& o = options("", "")) : tag_(tag) {
    pattern::Random random(tag ^ (check::seed() << 48));
    sizes_.resize(random.below(5));
    for (std::size_t& size : sizes_) size = random_size(random, o);
    manifest_ = "\x92\xdc" + big_endian(sizes_.size(), 2);
    for (const std::size_t size : sizes_) manifest_ += '\xcf' + big_endian(size, 8);
    manifest_ += "\x91\x01";
  }

  std::uint64_t tag() const { return tag_; }
  const std::string& manifest() const { return manifest_; }

  std::vector<std::vector<std::uint8_t>> buffers() const {
    std::vector<std::vector<std::uint8_t>> out;
    for (std::size_t i = 0; i < sizes_.size(); ++i) out.push_back(pattern::bytes(seed_of(i), sizes_[i]));
    return out;
  }

  // Every byte of it, the padding between the buffers too.
  void check(const Dict& dict) const {
    CHECK_EQUAL(dict.tag, tag_);
    CHECK(dict.manifest == manifest_);
    std::size_t at = 0;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      if (sizes_[i] == 0) continue;
      CHECK(dict.block && at + align_up(sizes_[i]) <= dict.block->size());
      const std::uint8_t* start = dict.block->bytes() + at;
      CHECK(pattern::matches(seed_of(i), start, sizes_[i]));
      CHECK(pattern::all_zero(start + sizes_[i], align_up(sizes_[i]) - sizes_[i]));
      at += align_up(sizes_[i]);
    }
    CHECK_EQUAL(dict.block ? dict.block->size() : 0, at);
  }

 private:
  std::uint64_t seed_of(std::size_t index) const { return (tag_ << 8) + index; }

  static std::size_t random_size(pattern::Random& random, const Options& o) {
    const std::size_t edges[] = {0, kAlign, o.inline_bytes, o.chunk_bytes, 2 * o.chunk_bytes, 5 * o.chunk_bytes};
    const std::size_t edge = edges[random.below(std::size(edges))];
    switch (random.below(4)) {
      case 0: return edge;
      case 1: return edge + 1 + random.below(kAlign);
      case 2: return edge > kAlign ? edge - 1 - random.below(kAlign) : edge;
      default: return random.below(2 * o.chunk_bytes);
    }
  }

  static std::string big_endian(std::uint64_t value, int width) {
    std::string out;
    while (width-- > 0) out += static_cast<char>(value >> (8 * width));
    return out;
  }

  std::uint64_t tag_;
  std::vector<std::size_t> sizes_;
  std::string manifest_;
};

// Of the number-th dict that a thread sends.
inline std::uint64_t tag_of(int thread, std::uint64_t number) { return (std::uint64_t(thread) << 32) | number; }

// Received dicts, which must be whole, and those of one thread in order. `gaps`: some may have been given up.
class Arrivals {
 public:
  explicit Arrivals(bool gaps = false) : gaps_(gaps) {}
  void take(const Dict& dict) {
    Content(dict.tag).check(dict);
    const std::uint64_t thread = dict.tag >> 32, number = dict.tag & 0xffffffff;
    CHECK(gaps_ ? number >= next_[thread] : number == next_[thread]);
    next_[thread] = number + 1;
    ++count_;
  }
  std::uint64_t count() const { return count_; }

 private:
  const bool gaps_;
  std::map<std::uint64_t, std::uint64_t> next_;
  std::uint64_t count_ = 0;
};

inline Span span_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

// Sends it, and overwrites the source as soon as that is allowed. False: the link's end came first.
inline bool send(Link& link, const Content& content, double deadline_s = kLong_s) {
  auto buffers = content.buffers();
  std::vector<Span> body{span_of(content.manifest())};
  for (const auto& bytes : buffers) {
    if (!bytes.empty()) body.push_back({bytes.data(), bytes.size()});
  }
  bool copied = link.try_send_dict(body, content.tag());
  if (!copied) {
    if (!link.reserve(link.reservation(body), Deadline::after(kLong_s))) throw link.queue_timeout(kLong_s);
    const SendTicketPtr ticket =
        link.send_dict(body, {.tag = content.tag(), .deadline = Deadline::after(deadline_s)});
    try {
      copied = ticket->wait_copied(Deadline::after(kLong_s + deadline_s));
      CHECK(copied);
    } catch (const Error&) {
      CHECK(ticket->is_settled());
    }
  }
  for (auto& bytes : buffers) std::fill(bytes.begin(), bytes.end(), 0xee);
  return copied;
}

inline void send_control(Link& link, std::uint64_t tag, std::size_t size) {
  const auto body = pattern::bytes(tag, size);
  if (link.try_send_control(body.data(), size, {.tag = tag})) return;
  if (!link.reserve(size, Deadline::after(kLong_s))) throw link.queue_timeout(kLong_s);
  link.send_control(body.data(), size, {.tag = tag, .deadline = Deadline::after(kLong_s)});
}

// Empty: nothing came within the time. Throws the link's error.
inline std::optional<Dict> receive(Link& link, double timeout_s = kLong_s) {
  const RecvTicketPtr ticket = link.inbox()->post();
  std::optional<Dict> dict = link.inbox()->wait(ticket, Deadline::after(timeout_s));
  if (!dict) link.inbox()->cancel(ticket);
  return dict;
}

// The error that ends `body`, which is repeated until then.
template <typename Body>
Code until_error(Body body) {
  try {
    while (true) body();
  } catch (const Error& error) {
    return error.code();
  }
}

}  // namespace links
