// Memory of the fake driver's devices: named shared memory, so that another process can open what one exports.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
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

// Null: it cannot be had. `size` 0: as large as it is.
inline void* map_shared(const std::string& name, std::size_t size, bool make) {
  const int fd = ::shm_open(name.c_str(), make ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0600);
  if (fd < 0) return nullptr;
  void* bytes = MAP_FAILED;
  if (!make || ::ftruncate(fd, static_cast<off_t>(size)) == 0) {
    bytes = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  ::close(fd);
  return bytes == MAP_FAILED ? nullptr : bytes;
}

}  // namespace fake
