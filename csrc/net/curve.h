// A pipeline's key pair, as it is set on a socket: with it libzmq encrypts, and lets in only who proves to have it.
//
// Owns: values. Blocks? never. Thread: the socket's. Errors: kUnsupported (libzmq without CURVE), kConfig (no keys).
// Source: CurveZMQ, https://rfc.zeromq.org/spec/26/; Z85, https://rfc.zeromq.org/spec/32/.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "net/socket.h"

namespace zmqpp::net {

// In Z85, 40 characters each; both empty: connections are neither encrypted nor authenticated.
struct KeyPair {
  std::string public_key, secret_key;
  bool is_given() const { return !public_key.empty(); }
};

using RawKey = std::array<std::uint8_t, 32>;

// What an encrypted message is longer by: command name, nonce, flags and authenticator (RFC 26: 8 + 8 + 1 + 16).
inline constexpr std::size_t kCurveOverhead = 64;

void use_keys_to_bind(Socket& socket, const KeyPair& keys);
void use_keys_to_connect(Socket& socket, const KeyPair& keys);
RawKey raw_key(const std::string& z85);

}  // namespace zmqpp::net
