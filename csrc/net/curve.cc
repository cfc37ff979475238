#include "net/curve.h"

#include "base/error.h"

namespace zmqpp::net {
namespace {

constexpr std::size_t kZ85KeySize = 40;

void set_key(Socket& socket, Option option, const std::string& key) {
  if (key.size() != kZ85KeySize) {
    throw Error(Code::kConfig, "open", "a CURVE key has 40 characters, this one " + std::to_string(key.size()));
  }
  if (zmq().setsockopt(socket.raw(), option, key.data(), key.size()) == 0) return;
  throw Error(Code::kUnsupported, "open",
              "libzmq takes no CURVE key (" + zmq_error_text() + "): reinstall pyzmq from its wheel, which has CURVE");
}

}  // namespace

void use_keys_to_bind(Socket& socket, const KeyPair& keys) {
  if (!keys.is_given()) return;
  set_key(socket, kCurvePublicKey, keys.public_key);
  set_key(socket, kCurveSecretKey, keys.secret_key);
  socket.set(kCurveServer, 1);
}

void use_keys_to_connect(Socket& socket, const KeyPair& keys) {
  if (!keys.is_given()) return;
  set_key(socket, kCurvePublicKey, keys.public_key);
  set_key(socket, kCurveSecretKey, keys.secret_key);
  set_key(socket, kCurveServerKey, keys.public_key);
}

RawKey raw_key(const std::string& z85) {
  RawKey raw{};
  if (z85.size() != kZ85KeySize || zmq().z85_decode(raw.data(), z85.c_str()) == nullptr) {
    throw Error(Code::kConfig, "open", "a CURVE key that is not Z85; make new ones: zmqpp keygen DIR");
  }
  return raw;
}

}  // namespace zmqpp::net
