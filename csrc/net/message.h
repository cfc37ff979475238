// One ZeroMQ frame, move only.
//
// Owns: the frame until it was sent. Blocks? never. Thread: one at a time. Errors: kResource without memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "net/zmq_api.h"

namespace zmqpp::net {

class Message {
 public:
  Message() { zmq().msg_init(&raw_); }
  explicit Message(std::size_t size) {
    if (zmq().msg_init_size(&raw_, size) != 0) no_memory(size);
  }
  // Zero copy: `free` is called with (bytes, hint) once libzmq is done, on a thread of libzmq's.
  Message(void* bytes, std::size_t size, FreeFn free, void* hint) {
    if (zmq().msg_init_data(&raw_, bytes, size, free, hint) != 0) {
      free(bytes, hint);
      no_memory(size);
    }
  }
  ~Message() { zmq().msg_close(&raw_); }
  Message(Message&& other) noexcept : Message() { zmq().msg_move(&raw_, &other.raw_); }
  Message& operator=(Message&& other) noexcept {
    if (this != &other) zmq().msg_move(&raw_, &other.raw_);
    return *this;
  }

  std::uint8_t* bytes() { return static_cast<std::uint8_t*>(zmq().msg_data(&raw_)); }
  std::size_t size() const { return zmq().msg_size(&raw_); }
  bool more() const { return zmq().msg_more(&raw_) != 0; }
  RawMessage* raw() { return &raw_; }

 private:
  [[noreturn]] static void no_memory(std::size_t size) {
    throw Error(Code::kResource, "send", "no memory for a message of " + std::to_string(size) + " bytes");
  }
  RawMessage raw_;
};

}  // namespace zmqpp::net
