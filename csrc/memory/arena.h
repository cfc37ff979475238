// Where in a shared segment the next body goes: first fit from the front, so that little memory stays warm. Bodies of
// about the size of a core's own cache take turns between two places: one that the reader has just read lies in its
// cache, line by line, and to write it again takes three times as long (1 MiB here: 75 against 23 us).
//
// Owns: the list of free extents, in private memory: the peer cannot damage it. Blocks? never.
// Thread: one at a time. Errors: none; no room is an answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace zmqpp::memory {

class Arena {
 public:
  // `most`: extents that can be taken at a time, so that no list grows later.
  Arena(std::uint64_t bytes, std::size_t most);

  std::optional<std::uint64_t> take(std::uint64_t size);  // the offset, a multiple of kGrain
  void give_back(std::uint64_t offset, std::uint64_t size);
  void shrink(std::uint64_t bytes);  // nothing beyond is handed out any more

  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t largest() const;  // that could be taken now

  static constexpr std::uint64_t kGrain = 128;  // two lines: what hardware fetches together belongs to one block
  static constexpr std::uint64_t rounded(std::uint64_t size) { return (size + kGrain - 1) / kGrain * kGrain; }

 private:
  struct Extent {
    std::uint64_t offset;
    std::uint64_t size;
  };
  std::optional<std::uint64_t> take_from(std::uint64_t start, std::uint64_t needed);

  std::uint64_t bytes_;
  std::uint64_t turn_ = 0;    // where the next body of that size looks first
  std::vector<Extent> free_;  // by offset; neighbours are joined
};

}  // namespace zmqpp::memory
