#include "net/socket_path.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/deadline.h"
#include "base/error.h"

namespace zmqpp::net {
namespace {

constexpr double kPatience_s = 1.0;  // who binds holds the lock for microseconds
constexpr char kScheme[] = "ipc://";

// Returns the locked folder. Without the lock (no permission, somebody else's) the check is only less than watertight.
int lock_folder(const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  const Deadline patience = Deadline::after(kPatience_s);
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0 && !patience.expired()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return fd;
}

// The connection is closed at once, as a port probe's would be; a live link takes no notice.
bool somebody_accepts(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) throw Error(Code::kResource, "bind", std::string("no socket: ") + std::strerror(errno));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  const int failed = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int reason = errno;
  ::close(fd);
  if (failed == 0 || reason == EAGAIN) return true;  // EAGAIN: its backlog is full
  if (reason == ECONNREFUSED || reason == ENOENT) return false;
  throw Error(Code::kConnect, "bind",
              "ipc://" + path + ": cannot tell whether it is in use: " + std::strerror(reason) + "; choose another path");
}

void check_free(const std::string& endpoint, const std::string& path) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) return;
  if (!S_ISSOCK(found.st_mode)) {
    throw Error(Code::kConnect, "bind",
                endpoint + ": there is a file of another kind at this path; remove it, or choose another path");
  }
  if (somebody_accepts(path)) throw Error(Code::kAddressInUse, "bind", endpoint + " is in use: somebody listens there");
}

}  // namespace

SocketPath::SocketPath(const std::string& endpoint) {
  if (endpoint.rfind(kScheme, 0) != 0) return;
  const std::string path = endpoint.substr(sizeof kScheme - 1);
  folder_ = lock_folder(path);
  try {
    check_free(endpoint, path);
  } catch (...) {
    if (folder_ >= 0) ::close(folder_);
    throw;
  }
}

SocketPath::~SocketPath() {
  if (folder_ >= 0) ::close(folder_);  // which unlocks it
}

}  // namespace zmqpp::net
