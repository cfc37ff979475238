#include "memory/segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "base/error.h"
#include "base/random.h"

namespace zmqpp::memory {
namespace {

constexpr char kFolder[] = "/dev/shm/";
constexpr char kPrefix[] = "zmqpp-";
constexpr int kAttempts = 16;

[[noreturn]] void fail(const std::string& what, int error) {
  throw Error(Code::kSharedMemory, "open", what + ": " + std::strerror(error));
}

std::string new_name() {
  char text[64];
  std::snprintf(text, sizeof text, "%s%d-%016llx", kPrefix, static_cast<int>(::getpid()),
                static_cast<unsigned long long>(random_u64()));
  return text;
}

// A name is [A-Za-z0-9-] behind the prefix: what came from a peer must not lead out of the folder.
bool is_name(const std::string& name) {
  constexpr char kAllowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-";
  return name.rfind(kPrefix, 0) == 0 && name.find_first_not_of(kAllowed) == std::string::npos;
}

// The maker's lock ends with the maker. Returns false when somebody took the newborn for an orphan.
bool lock_newborn(int fd) {
  struct stat found {};
  return ::flock(fd, LOCK_EX | LOCK_NB) == 0 && ::fstat(fd, &found) == 0 && found.st_nlink > 0;
}

struct flock first_byte() {
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  range.l_len = 1;
  return range;
}

std::uint8_t* map(int fd, std::size_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) return nullptr;
  ::madvise(at, bytes, MADV_HUGEPAGE);  // taken up where the system allows it for shared memory
  return static_cast<std::uint8_t*>(at);
}

void remove_if_dead(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return;  // somebody else's, or gone
  struct stat opened {}, named {};
  const bool dead = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  if (dead && ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino) {
    ::unlink(path.c_str());
  }
  ::close(fd);
}

}  // namespace

Segment Segment::create(std::size_t bytes, std::size_t committed) {
  Segment segment;
  for (int i = 0; i < kAttempts && !segment.named_; ++i) {
    segment.name_ = new_name();
    segment.fd_ = ::open((kFolder + segment.name_).c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (segment.fd_ < 0) fail(std::string("no file in ") + kFolder, errno);
    segment.named_ = segment.made_ = true;
    if (lock_newborn(segment.fd_)) break;
    segment.unlink_name();
    ::close(std::exchange(segment.fd_, -1));
  }
  if (segment.fd_ < 0) fail(std::string("no lasting file in ") + kFolder, EBUSY);
  if (::ftruncate(segment.fd_, static_cast<off_t>(bytes)) != 0) fail("no shared segment", errno);
  if (!segment.commit(0, committed)) {
    throw Error(Code::kSharedMemory, "open",
                std::string(kFolder) + " has no room for " + std::to_string(committed) + " bytes");
  }
  segment.bytes_ = map(segment.fd_, bytes);
  if (segment.bytes_ == nullptr) fail("cannot map a shared segment of " + std::to_string(bytes) + " bytes", errno);
  segment.size_ = bytes;
  return segment;
}

Segment Segment::open(const std::string& name, std::size_t bytes) {
  if (!is_name(name)) throw Error(Code::kSharedMemory, "open", "the peer's segment has a name that is none");
  Segment segment;
  segment.name_ = name;
  segment.fd_ = ::open((kFolder + name).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (segment.fd_ < 0) fail("cannot open the peer's segment " + (kFolder + name), errno);
  struct stat found {};
  if (::fstat(segment.fd_, &found) != 0 || !S_ISREG(found.st_mode) || static_cast<std::size_t>(found.st_size) != bytes) {
    throw Error(Code::kSharedMemory, "open", "the peer's segment is not the file it announced");
  }
  if (found.st_uid != ::geteuid() || (found.st_mode & 077) != 0) {  // root could open what others may write to
    throw Error(Code::kSharedMemory, "open", "the peer's segment is another user's, or open to others");
  }
  segment.bytes_ = map(segment.fd_, bytes);
  if (segment.bytes_ == nullptr) fail("cannot map the peer's segment of " + std::to_string(bytes) + " bytes", errno);
  segment.size_ = bytes;
  segment.named_ = true;  // whoever accepts it takes the name away
  return segment;
}

Segment::Segment(Segment&& other) noexcept
    : name_(std::move(other.name_)),
      fd_(std::exchange(other.fd_, -1)),
      named_(std::exchange(other.named_, false)),
      made_(std::exchange(other.made_, false)),
      bytes_(std::exchange(other.bytes_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      pinned_(std::move(other.pinned_)) {}

Segment::~Segment() {
  if (made_) unlink_name();
  pinned_.reset();
  if (bytes_ != nullptr) ::munmap(bytes_, size_);
  if (fd_ >= 0) ::close(fd_);
}

bool Segment::commit(std::size_t from, std::size_t size) {
  int error = 0;
  do {
    error = ::posix_fallocate(fd_, static_cast<off_t>(from), static_cast<off_t>(size));
  } while (error == EINTR);
  return error == 0;
}

void Segment::pin(device::Device& device, std::size_t from, std::size_t size) {
  if (pinned_ == nullptr) pinned_ = std::make_unique<device::Registered>(device, bytes_ + from, size);
}

void Segment::abandon() noexcept {
  if (pinned_ != nullptr) pinned_->abandon();
  bytes_ = nullptr;
  fd_ = -1;  // with what it locks
}

// A lock of the open file, which ends with the last process that has it, and which no other of the maker's ends by accident.
bool Segment::hold() noexcept {
  struct flock range = first_byte();
  return ::fcntl(fd_, F_OFD_SETLK, &range) == 0;
}

bool Segment::is_held() const noexcept {
  struct flock range = first_byte();
  return ::fcntl(fd_, F_OFD_GETLK, &range) != 0 || range.l_type != F_UNLCK;
}

void Segment::unlink_name() noexcept {
  if (std::exchange(named_, false)) ::unlink((kFolder + name_).c_str());
}

std::size_t pinnable(std::size_t wanted) noexcept {
  struct statvfs found {};
  if (::statvfs(kFolder, &found) != 0) return wanted;
  return std::min<std::size_t>(wanted, found.f_bavail / 2 * found.f_frsize);
}

void remove_dead_segments() noexcept {
  DIR* folder = ::opendir(kFolder);
  if (folder == nullptr) return;
  while (const dirent* entry = ::readdir(folder)) {
    if (is_name(entry->d_name)) remove_if_dead(std::string(kFolder) + entry->d_name);
  }
  ::closedir(folder);
}

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  std::getline(file, text);
  return text;
}

}  // namespace zmqpp::memory
