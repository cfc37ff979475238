// Makes sure that the path of a Unix socket is free before it is bound: libzmq deletes whatever lies there.
//
// Owns: a lock on the path's folder while it lives, so that of two who find a stale file only one takes its place.
// Blocks? at most kPatience_s, for others who are binding in the same folder. Thread: one at a time.
// Errors: kAddressInUse (somebody accepts connections there), kConnect (another kind of file).
#pragma once

#include <string>

namespace zmqpp::net {

class SocketPath {
 public:
  // Before bind(). Does nothing for other endpoints than ipc:///path. A file that nobody listens on may be replaced.
  explicit SocketPath(const std::string& endpoint);
  ~SocketPath();
  SocketPath(const SocketPath&) = delete;
  SocketPath& operator=(const SocketPath&) = delete;

 private:
  int folder_ = -1;
};

}  // namespace zmqpp::net
