// One place on the ring: the two halves, and what they share.
//
// Owns: everything below, in an order that lets each part outlive its users.
// Blocks? send_… wait for room, wait_… for their state, close for the flush and the threads, reopen_… for the threads
//   and the port; all under deadlines. use_device while memory is pinned.
//   The binding waits in slices, so that signals are heard.
// Thread: all safe. Errors: those of the halves; kConfig when the asked half does not exist.
// Fork: a child must not touch it: every call there throws kClosed, and open_link's pointer never destroys it there.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/inbox.h"
#include "engine/options.h"
#include "engine/receiver.h"
#include "engine/sender.h"
#include "engine/stats.h"

namespace zmqpp::engine {

struct SendOptions {
  wire::Route route = wire::Route::kLink;
  std::uint64_t tag = 0;
  Deadline deadline = Deadline::never();
  FlightPtr flight = nullptr;  // of a dict with tensors on devices
};

class Link {
 public:
  explicit Link(Options options);  // use open_link
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  const Options& options() const { return options_; }
  std::string bound() const;

  // The whole dict at once, without any other thread; `body`: manifest, then payload. False: reserve and send_dict.
  bool try_send_dict(const std::vector<Span>& body, std::uint64_t tag);
  // Reserve, then send: the first may be repeated in slices (false: no room yet), the second never blocks.
  bool reserve(std::size_t bytes, const Deadline& slice);
  Error queue_timeout(double waited_s) const;
  bool try_send_control(const std::uint8_t* body, std::size_t size, const SendOptions& send);  // as try_send_dict
  void send_control(const std::uint8_t* body, std::size_t size, const SendOptions& send);
  // Large payloads are read by the sender thread until the ticket is settled; small ones are copied before return.
  SendTicketPtr send_dict(const std::vector<Span>& body, const SendOptions& send);
  std::size_t reservation(const std::vector<Span>& body) const;

  std::shared_ptr<Inbox> inbox();  // throws kConfig without a receiving half
  bool wait_send_peer(const Deadline& deadline);  // and for the choice of the lane
  bool is_receiver_there() const;
  bool wait_receive_peer(const Deadline& deadline);
  Error peer_timeout(bool sending, double waited_s) const;
  std::string receive_trouble() const;  // why nothing can have arrived, as far as known; empty while connected

  // The half anew, at the same address: whatever it held is gone, its error too. Who still waits in the old one gets
  // that error. A tensor received earlier stays.
  void reopen_send(const Deadline& deadline);  // kAddressInUse: the port did not become free in time
  void reopen_receive();

  // What the link has and will have is pinned for copies to and from devices; kDevice, kPinned. Received dicts are to go to
  // this one. For who learns of it only after the link has opened.
  void use_device(device::Ordinal ordinal);
  void set_epoch(std::uint32_t epoch);
  std::uint32_t epoch() const { return epoch_; }
  std::map<std::string, std::uint64_t> stats() const;
  std::string lane_reason() const;
  std::vector<net::Refusal> take_refusals();  // whom a gate refused since the last call, each address once
  std::string key_trouble() const;            // what is wrong with the previous place's key, or empty
  Notice& notice() { return *notice_; }
  void arm(bool on);
  void note_send_wait(std::uint64_t ns) { add(stats_.send_wait_ns, ns); }
  std::optional<Error> send_error() const;
  std::optional<Error> receive_error() const;
  void close(double linger_s);
  bool is_closed() const { return closed_; }

 private:
  void check_usable() const;
  void check_sizes(std::uint64_t manifest, std::uint64_t total) const;
  struct Receiving;
  struct Next;
  std::shared_ptr<Sender> sender() const;
  std::shared_ptr<Receiving> receiving() const;
  std::shared_ptr<Sender> sending_half() const;
  void pin_pool(device::Device& device);
  std::shared_ptr<Sender> make_sender();
  std::shared_ptr<Receiving> make_receiving();
  bool is_inline(std::uint64_t total) const { return total <= options_.inline_bytes; }

  Options options_;  // `bind` becomes what was bound; read only afterwards
  const pid_t owner_;
  std::atomic<std::uint32_t> epoch_{0};
  std::atomic<bool> closed_{false};
  std::mutex closing_;
  const std::shared_ptr<Stats> shared_stats_ = std::make_shared<Stats>();  // received tensors count themselves out
  Stats& stats_ = *shared_stats_;
  net::Refusals refusals_;  // at every sending half, one after another
  const std::shared_ptr<Notice> notice_ = std::make_shared<Notice>();
  Budget budget_;
  Event sender_wake_;
  std::unique_ptr<memory::Pool> pool_;         // of chunks; with a sending half only, as the next
  std::unique_ptr<memory::Pool> frame_pool_;   // of whole messages with an inline payload
  Event frame_freed_;
  std::unique_ptr<net::Context> context_;
  std::unique_ptr<Next> next_;
  mutable std::mutex halves_;           // guards the two pointers; callers inside a half keep it alive
  std::shared_ptr<Sender> sender_;
  std::shared_ptr<Receiving> receiving_;
};

std::shared_ptr<Link> open_link(Options options);

}  // namespace zmqpp::engine
