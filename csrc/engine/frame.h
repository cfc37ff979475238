// Where the body of a message lies in its frame.
//
// One frame a message, not a head frame and a body frame: libzmq 4.3.5 aborts the process when a connection breaks
// while a socket closes in the middle of a multipart message (session_base.cpp, clean_pipes), and one is faster.
//
// Owns: nothing. Blocks? never. Thread: that of the frame. Errors: none; frames are at least a head long.
#pragma once

#include <cstddef>
#include <cstdint>

#include "net/message.h"
#include "wire/constants.h"

namespace zmqpp::engine {

inline std::uint8_t* body_of(net::Message& frame) { return frame.bytes() + wire::kHeadSize; }
inline std::size_t body_size(const net::Message& frame) { return frame.size() - wire::kHeadSize; }

}  // namespace zmqpp::engine
