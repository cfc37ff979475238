// A ZeroMQ context and a socket of it, closed in the right order.
//
// Owns: the C handles. A Context must outlive its Sockets.
// Blocks? only ~Context, until libzmq's threads are done with the sockets. The rest never does.
// Thread: a Socket belongs to one thread at a time; handing it over needs a full fence (starting a thread is one).
// Errors: kConfig (bad endpoint), kAddressInUse, kAddressUnavailable, kResource.
#pragma once

#include <string>

#include "net/message.h"
#include "net/zmq_api.h"

namespace zmqpp::net {

class Context {
 public:
  explicit Context(int io_threads);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  void* raw() const { return raw_; }
  int io_threads() const { return io_threads_; }

 private:
  void* raw_;
  const int io_threads_;
};

class Socket {
 public:
  Socket(Context& context, SocketType type);
  ~Socket() { close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void set(Option option, int value);
  void set_i64(Option option, long long value);
  void set_text(Option option, const std::string& value);
  void bind(const std::string& endpoint);
  void connect(const std::string& endpoint);
  void connect_again(const std::string& endpoint);
  void disconnect(const std::string& endpoint) noexcept;  // also where libzmq has dropped the endpoint by itself
  std::string last_endpoint() const;

  bool try_send(Message& message, bool more = false);  // false: would block; the message is still the caller's
  bool try_receive(Message& message);  // false: nothing there
  bool writable() const;
  int descriptor() const;  // readable when there may be something; only after a try_receive found nothing

  void close() noexcept;
  void* raw() const { return raw_; }

 private:
  void* raw_;
};

// poll() that takes EINTR as an early return. -1 of anything else throws kResource.
void poll(PollItem* items, int count, long timeout_ms);

}  // namespace zmqpp::net
