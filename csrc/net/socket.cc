#include "net/socket.h"

#include <array>
#include <cerrno>

namespace zmqpp::net {
namespace {

[[noreturn]] void fail(const char* op, Code code, const std::string& what) {
  throw Error(code, op, what + ": " + zmq_error_text());
}

Code endpoint_code(int error) {
  switch (error) {
    case EADDRINUSE: return Code::kAddressInUse;
    case EADDRNOTAVAIL:
    case ENODEV: return Code::kAddressUnavailable;  // ENODEV: libzmq took the host for an interface name
    case EINVAL:
    case EPROTONOSUPPORT: return Code::kConfig;
    default: return Code::kConnect;
  }
}

}  // namespace

Context::Context(int io_threads) : raw_(zmq().ctx_new()), io_threads_(io_threads) {
  if (raw_ == nullptr) fail("open", Code::kResource, "no ZeroMQ context");
  zmq().ctx_set(raw_, kCtxIoThreads, io_threads);
}

Context::~Context() {
  while (zmq().ctx_term(raw_) != 0 && zmq().last_errno() == EINTR) {
  }
}

Socket::Socket(Context& context, SocketType type) : raw_(zmq().socket(context.raw(), type)) {
  if (raw_ == nullptr) fail("open", Code::kResource, "no ZeroMQ socket");
}

void Socket::set(Option option, int value) {
  if (zmq().setsockopt(raw_, option, &value, sizeof value) != 0) {
    fail("open", Code::kResource, "socket option " + std::to_string(option) + " = " + std::to_string(value));
  }
}

void Socket::set_i64(Option option, long long value) {
  if (zmq().setsockopt(raw_, option, &value, sizeof value) != 0) {
    fail("open", Code::kResource, "socket option " + std::to_string(option) + " = " + std::to_string(value));
  }
}

void Socket::set_text(Option option, const std::string& value) {
  if (zmq().setsockopt(raw_, option, value.data(), value.size()) != 0) {
    fail("open", Code::kResource, "socket option " + std::to_string(option));
  }
}

void Socket::bind(const std::string& endpoint) {
  if (zmq().bind(raw_, endpoint.c_str()) != 0) fail("bind", endpoint_code(zmq().last_errno()), endpoint);
}

void Socket::connect(const std::string& endpoint) {
  if (zmq().connect(raw_, endpoint.c_str()) != 0) fail("connect", endpoint_code(zmq().last_errno()), endpoint);
}

void Socket::connect_again(const std::string& endpoint) {
  disconnect(endpoint);
  connect(endpoint);
}

void Socket::disconnect(const std::string& endpoint) noexcept { zmq().disconnect(raw_, endpoint.c_str()); }

std::string Socket::last_endpoint() const {
  std::array<char, 512> text{};
  std::size_t size = text.size();
  if (zmq().getsockopt(raw_, kLastEndpoint, text.data(), &size) != 0) fail("bind", Code::kResource, "no endpoint");
  return text.data();
}

bool Socket::try_send(Message& message, bool more) {
  while (zmq().msg_send(message.raw(), raw_, kDontWait | (more ? kSendMore : 0)) < 0) {
    const int error = zmq().last_errno();
    if (error == EAGAIN) return false;
    if (error != EINTR) fail("send", Code::kResource, "ZeroMQ refused a message");
  }
  return true;
}

bool Socket::try_receive(Message& message) {
  while (zmq().msg_recv(message.raw(), raw_, kDontWait) < 0) {
    const int error = zmq().last_errno();
    if (error == EAGAIN) return false;
    if (error != EINTR) fail("receive", Code::kResource, "ZeroMQ failed");
  }
  return true;
}

bool Socket::writable() const {
  int events = 0;
  std::size_t size = sizeof events;
  return zmq().getsockopt(raw_, kEvents, &events, &size) == 0 && (events & kPollOut) != 0;
}

int Socket::descriptor() const {
  int fd = -1;
  std::size_t size = sizeof fd;
  if (zmq().getsockopt(raw_, kFd, &fd, &size) != 0) fail("open", Code::kResource, "no descriptor");
  return fd;
}

void Socket::close() noexcept {
  if (raw_ != nullptr) zmq().close(raw_);
  raw_ = nullptr;
}

void poll(PollItem* items, int count, long timeout_ms) {
  if (zmq().poll(items, count, timeout_ms) >= 0) return;
  if (zmq().last_errno() == EINTR) {
    for (int i = 0; i < count; ++i) items[i].revents = 0;
    return;
  }
  fail("poll", Code::kResource, "ZeroMQ failed");
}

}  // namespace zmqpp::net
