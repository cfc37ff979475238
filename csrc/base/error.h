// The one error type of the engine and its closed list of codes.
//
// Owns: its text. Blocks? never. Thread: a value, copy it freely.
// Errors: this is them. bind/errors.cc maps every code to exactly one Python class.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace zmqpp {

enum class Code {
  kConfig,
  kUnsupported,
  kClosed,
  kConnect,
  kAddressInUse,
  kAddressUnavailable,
  kPeerLost,
  kPeerClosed,  // as kPeerLost, but with a goodbye: everything it sent has come
  kConnectTimeout,
  kSendTimeout,
  kRecvTimeout,
  kPoolTimeout,
  kMalformed,
  kVersion,
  kSequence,
  kChecksum,
  kResource,
  kSharedMemory,
  kDevice,
  kPinned,
  kCount_,  // not a code: how many there are
};

class Error : public std::exception {
 public:
  Error(Code code, std::string op, std::string detail)
      : code_(code), op_(std::move(op)), detail_(std::move(detail)), text_(op_ + ": " + detail_) {}

  Code code() const noexcept { return code_; }
  const std::string& op() const noexcept { return op_; }
  const std::string& detail() const noexcept { return detail_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  Code code_;
  std::string op_;      // what was being done: "send_dict", "receive", …
  std::string detail_;  // what went wrong, how much, what to do
  std::string text_;
};

}  // namespace zmqpp
