// Removes the file of a bound Unix socket when it closes; libzmq leaves it behind.
//
// Owns: the file, as long as it is the one that was bound: a successor may have taken the path meanwhile.
// Blocks? never. Thread: one at a time. Errors: none; a file that is gone already is fine.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <utility>

namespace zmqpp::net {

class SocketFile {
 public:
  // After bind(). Does nothing for other endpoints than ipc:///path.
  explicit SocketFile(const std::string& endpoint) {
    constexpr char kScheme[] = "ipc://";
    if (endpoint.rfind(kScheme, 0) != 0) return;
    path_ = endpoint.substr(sizeof kScheme - 1);
    if (::stat(path_.c_str(), &bound_) != 0) path_.clear();
  }
  ~SocketFile() { remove(); }
  SocketFile(const SocketFile&) = delete;
  SocketFile& operator=(const SocketFile&) = delete;

  void remove() noexcept {
    const std::string path = std::exchange(path_, {});
    struct stat now {};
    if (path.empty() || ::stat(path.c_str(), &now) != 0) return;
    if (now.st_dev == bound_.st_dev && now.st_ino == bound_.st_ino) ::unlink(path.c_str());
  }

 private:
  std::string path_;
  struct stat bound_ {};
};

}  // namespace zmqpp::net
