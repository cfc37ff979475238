// A TCP connection of libzmq's, looked at from beside: whether the other host still answers.
//
// A sender hears nothing from a receiver that is content, so only TCP's own acknowledgements tell that the host at the
// other end is there. Its kernel gives them, even for a process that stands still or reads nothing: those are not cut off.
//
// The descriptor is libzmq's. It may be closed, and its number in use for something else, at any moment: therefore the
// name that it had when it was known to be the peer's.
//
// Owns: nothing. Blocks? never. Thread: any. Errors: none; what cannot be told is no.
// Source: tcp(7), TCP_INFO.
#pragma once

#include <string>

namespace zmqpp::net {

std::string connection_name(int fd);  // both its addresses; empty: it is closed, or no TCP connection

// Something was sent more than once, in vain, and nothing has come from the other host for so long.
bool is_unanswered(int fd, const std::string& name, double for_s);

}  // namespace zmqpp::net
