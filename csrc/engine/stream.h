// Everything said on a link's PUSH socket: one numbered sequence of messages, built and sent.
//
// A chunk of a tensor on a device is begun, by a copy into pinned memory on a stream beside the caller's, and built when
// that has landed; meanwhile those behind it are begun, as far as there are free ones in the pool.
//
// Owns: socket, watch, the message that was built last, and the dict whose chunks are on their way.
// Blocks? fail, until copies that are under way have landed. Thread: one at a time; the sender guards it by a mutex, so that a caller's own thread may send a
//   message right away when nothing is in front of it.
// Errors: kPeerLost and kConnect from watch_peer; what building needs.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "device/copies.h"
#include "engine/budget.h"
#include "engine/options.h"
#include "engine/outgoing.h"
#include "engine/stats.h"
#include "memory/pool.h"
#include "net/gate.h"
#include "net/peer_watch.h"
#include "net/socket.h"
#include "net/socket_file.h"
#include "wire/hello.h"

namespace zmqpp::engine {

class Stream {
 public:
  enum class Progress { kIdle, kMore, kBlocked, kNoChunk, kLanding };
  // The next item; only a control message while the chunks of a dict are on their way.
  using NextItem = std::function<std::optional<Outgoing>(bool only_control)>;

  // `wake` is signalled when the gate wants the events of the peers looked at.
  Stream(net::Context& context, const Options& options, Budget& budget, memory::Pool& pool, Stats& stats, Event& wake,
         net::Refusals& refusals);
  ~Stream() { close(); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  const std::string& bound() const { return bound_; }
  std::uint64_t session() const { return session_; }
  void offer(const wire::Hello& hello) { hello_ = hello; }

  void watch_peer();
  bool connected() const { return watch_.connected(); }
  bool peer_lost() const { return watch_.lost(); }
  bool peer_is_local() const { return watch_.peer_is_local(); }

  Progress send_ready(const NextItem& next);
  bool send_now(Outgoing& item);  // false: something is in front; the item is still the caller's
  bool is_free() const;           // nothing is in front
  void nudge() { nudge_ = true; }
  bool nudge_now();               // false: something is in front, which nudge does not need
  std::uint64_t controls_sent() const { return controls_sent_; }  // any thread
  void say_bye();
  bool hello_sent() const { return hello_sent_; }
  bool bye_sent() const { return bye_sent_; }

  bool expire();  // true: something was removed, so that there may be something else to do
  void drop_expired(Outgoing item);
  Deadline wait_until(Progress progress) const;
  void* socket() const { return socket_.raw(); }
  void* monitor() const { return watch_.raw(); }
  void fail(const Error& reason);  // everything that was begun
  void close() noexcept;

 private:
  // A message built and not yet taken by ZeroMQ.
  struct Pending {
    wire::Head head;
    net::Message frame;
    std::optional<Outgoing> item;  // the item this message starts; empty for hello, chunk, beat, bye, cancel, nudge
  };
  // A dict whose chunks are on their way.
  struct Current {
    Outgoing item;
    PayloadReader reader;
    std::uint64_t begun = 0;   // bytes whose copies were asked for
    std::uint64_t offset = 0;  // bytes that ZeroMQ has
    bool late = false;         // to be cancelled when nothing reads its source any more
    bool copied = false;       // nothing does
    explicit Current(Outgoing from) : item(std::move(from)), reader(item.payload) {}
    Current(const Current&) = delete;  // `reader` points into `item`
  };

  // A chunk whose bytes are there, or on their way from a device.
  struct Begun {
    wire::Head head;
    net::Message frame;
    device::LandingPtr landing;
  };

  Progress build_next(const NextItem& next);  // kMore: pending_ is filled
  void check_silence();
  void build_hello();
  void build_item(Outgoing item);
  Progress build_chunk();
  void begin_chunks();
  bool begin_chunk();
  void begin_device_dict();
  void note_copied();
  void build_plain(wire::Kind kind) { put({.kind = kind}, net::Message(wire::kHeadSize)); }
  void put(const wire::Head& head, net::Message frame);
  bool cancel_current();  // false: a device still reads from it
  bool is_landing() const;
  void on_sent();
  void on_dict_sent(Outgoing& item);
  std::string held_text() const;

  const Options options_;
  Budget& budget_;
  memory::Pool& pool_;
  Stats& stats_;
  const std::uint64_t session_;
  wire::Hello hello_;
  std::string bound_;
  net::Gate gate_;
  net::Socket socket_;
  net::PeerWatch watch_;
  std::optional<net::SocketFile> file_;

  std::optional<Pending> pending_;
  std::optional<Current> current_;
  device::Copies copies_;
  std::deque<Begun> begun_;  // of current_, in order
  std::optional<wire::Head> cancel_;  // of a dict cut off by its deadline; goes in front of everything else
  bool nudge_ = false;
  std::uint64_t sequence_ = 0;
  std::atomic<std::uint64_t> controls_sent_{0};  // that ZeroMQ has
  bool hello_sent_ = false;
  bool bye_sent_ = false;
  Deadline next_beat_ = Deadline::never();
  Deadline next_look_ = Deadline::never();  // at whether the peer's host answers
  bool unanswered_ = false;                 // at the look before
  std::uint64_t starved_ns_ = 0;  // since when no chunk was free; 0: there are
};

}  // namespace zmqpp::engine
