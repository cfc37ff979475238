// Memory of the fake driver's devices: files without a name in memory, so that another process can open what one exports.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace fake {

struct Range {
  std::uint64_t base = 0;
  std::size_t size = 0;
  int ordinal = -1;     // -1: pinned memory of the host
  std::string name;     // of the shared memory; empty: none
  bool opened = false;  // another process made it
  int fd = -1;          // of one that is opened: locked, until it is closed or the process is gone
};

// Every range that the driver has given out or registered, by address.
class Memory {
 public:
  std::optional<Range> find(std::uint64_t address) {
    const std::lock_guard lock(mutex_);
    auto found = ranges_.upper_bound(address);
    if (found == ranges_.begin()) return std::nullopt;
    --found;
    return address < found->second.base + found->second.size ? std::optional(found->second) : std::nullopt;
  }

  bool add(const Range& range) {
    const std::lock_guard lock(mutex_);
    return ranges_.emplace(range.base, range).second;
  }

  std::optional<Range> take(std::uint64_t base) {
    const std::lock_guard lock(mutex_);
    const auto found = ranges_.find(base);
    if (found == ranges_.end()) return std::nullopt;
    const Range range = found->second;
    ranges_.erase(found);
    return range;
  }

 private:
  std::mutex mutex_;
  std::map<std::uint64_t, Range> ranges_;
};

// Memory that other processes can open by its name, and that is gone with the last process that has it. Null: it cannot be had.
inline void* make_shared_memory(std::size_t size, std::string& name) {
  const int fd = ::memfd_create("fake-cuda", MFD_CLOEXEC);
  if (fd < 0) return nullptr;
  name = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd);
  void* bytes = ::ftruncate(fd, static_cast<off_t>(size)) == 0
                    ? ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                    : MAP_FAILED;
  if (bytes != MAP_FAILED) return bytes;
  ::close(fd);
  return nullptr;
}

inline struct flock lock_of(short kind) {
  struct flock lock {};
  lock.l_type = kind;
  lock.l_whence = SEEK_SET;
  return lock;
}

// By another process; of one that was made here.
inline bool is_open_elsewhere(const std::string& name) {
  struct flock lock = lock_of(F_WRLCK);
  return ::fcntl(std::atoi(name.c_str() + name.rfind('/') + 1), F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

// Not in the process that made it: neither does CUDA. With `held` the maker can tell that it is open.
inline void* open_shared_memory(const std::string& name, std::size_t size, int* held = nullptr) {
  const std::string own = "/proc/" + std::to_string(::getpid()) + "/";
  if (name.rfind(own, 0) == 0) return nullptr;
  const int fd = ::open(name.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return nullptr;
  void* bytes = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (bytes == MAP_FAILED || held == nullptr) {
    ::close(fd);
  } else {
    struct flock lock = lock_of(F_RDLCK);
    ::fcntl(*held = fd, F_OFD_SETLK, &lock);
  }
  return bytes == MAP_FAILED ? nullptr : bytes;
}

// Unlocked for a process that was forked from this one too.
inline void close_shared_memory(void* bytes, std::size_t size, int held) {
  ::munmap(bytes, size);
  struct flock lock = lock_of(F_UNLCK);
  ::fcntl(held, F_OFD_SETLK, &lock);
  ::close(held);
}

inline void free_shared_memory(void* bytes, std::size_t size, const std::string& name) {
  ::munmap(bytes, size);
  ::close(std::atoi(name.c_str() + name.rfind('/') + 1));
}

}  // namespace fake
