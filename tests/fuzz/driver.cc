// Stands in for libFuzzer's main where there is no clang, with the same options as far as they are needed:
//
//   TARGET [-runs=N] [-max_total_time=SECONDS] [-seed=N] [-artifact_prefix=PREFIX] FILE_OR_FOLDER...
//
// A seed of 0 is another one each time. Gives every file to the target once, then changed ones: at random, which finds
// less than libFuzzer does by watching which branches are taken. An input that ends the program is left in PREFIXcrash.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr std::size_t kMaxSize = 16u << 10;

Bytes current;  // given to the target at the moment
std::string artifact_prefix;

void keep_current() {
  const std::string path = artifact_prefix + "crash";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(current.data()), static_cast<std::streamsize>(current.size()));
  std::fprintf(stderr, "the input is in %s\n", path.c_str());
}

void on_abort(int) {
  keep_current();
  std::_Exit(1);
}

void run(Bytes input) {
  current = std::move(input);
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

Bytes read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path.c_str());
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<Bytes> read_corpus(const std::vector<std::string>& places) {
  std::vector<Bytes> corpus;
  for (const std::string& place : places) {
    if (!std::filesystem::is_directory(place)) {
      corpus.push_back(read(place));
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(place)) corpus.push_back(read(entry.path()));
  }
  std::sort(corpus.begin(), corpus.end());  // the order of a folder is not the same everywhere
  return corpus;
}

class Mutator {
 public:
  Mutator(const std::vector<Bytes>& corpus, std::uint64_t seed)
      : corpus_(corpus), random_(seed == 0 ? std::random_device{}() : seed) {}

  Bytes next() {
    Bytes input = corpus_[below(corpus_.size())];
    for (std::size_t i = below(5) + 1; i-- > 0;) change(input);
    if (input.size() > kMaxSize) input.resize(kMaxSize);
    return input;
  }

 private:
  std::size_t below(std::size_t bound) { return random_() % bound; }

  void change(Bytes& input) {
    if (input.empty()) return input.push_back(static_cast<std::uint8_t>(below(256)));
    const std::size_t at = below(input.size());
    const std::size_t length = 1 + below(std::min<std::size_t>(input.size() - at, 80));
    const auto start = input.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = start + static_cast<std::ptrdiff_t>(length);
    switch (below(7)) {
      case 0: input[at] ^= static_cast<std::uint8_t>(1u << below(8)); return;
      case 1: input[at] = static_cast<std::uint8_t>(below(256)); return;
      case 2: return put_number(input, at);
      case 3: input.erase(start, end); return;
      case 4: return insert(input, at, Bytes(start, end));
      case 5: return insert(input, at, Bytes(length, static_cast<std::uint8_t>(below(256))));
      default: return cross(input, at);
    }
  }

  // Numbers at which sizes and offsets go wrong.
  void put_number(Bytes& input, std::size_t at) {
    static constexpr std::uint64_t kNumbers[] = {0, 1, 63, 64, 65, 1u << 16, 1u << 20, 1u << 31, 0xffffffff,
                                                 1ull << 32, 1ull << 60, 1ull << 63, ~0ull, ~0ull - 63};
    const std::uint64_t number = kNumbers[below(std::size(kNumbers))];
    const std::size_t width = std::min(std::size_t{1} << below(4), input.size() - at);
    std::memcpy(input.data() + at, &number, width);
  }

  // The end of another one behind the front of this one.
  void cross(Bytes& input, std::size_t at) {
    const Bytes& other = corpus_[below(corpus_.size())];
    input.resize(at);
    if (!other.empty()) input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(below(other.size())), other.end());
  }

  static void insert(Bytes& input, std::size_t at, const Bytes& what) {
    input.insert(input.begin() + static_cast<std::ptrdiff_t>(at), what.begin(), what.end());
  }

  const std::vector<Bytes>& corpus_;
  std::mt19937_64 random_;
};

struct Settings {
  std::uint64_t runs = 0, seed = 1;
  double seconds = 0;
  std::vector<std::string> places;
};

Settings read_settings(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const std::string value = word.substr(word.find('=') + 1);
    if (word.rfind("-runs=", 0) == 0) settings.runs = std::stoull(value);
    else if (word.rfind("-seed=", 0) == 0) settings.seed = std::stoull(value);
    else if (word.rfind("-max_total_time=", 0) == 0) settings.seconds = std::stod(value);
    else if (word.rfind("-artifact_prefix=", 0) == 0) artifact_prefix = value;
    else if (word[0] != '-') settings.places.push_back(word);
  }
  return settings;
}

}  // namespace

int main(int argc, char** argv) {
  using Clock = std::chrono::steady_clock;
  const Settings settings = read_settings(argc, argv);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(keep_current);
  std::signal(SIGABRT, on_abort);
  const std::vector<Bytes> corpus = read_corpus(settings.places);
  if (corpus.empty()) return std::fprintf(stderr, "no corpus given\n"), 2;
  run({});
  for (const Bytes& input : corpus) run(input);
  Mutator mutator(corpus, settings.seed);
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(settings.seconds));
  std::uint64_t runs = 0;
  while (runs < settings.runs || (settings.seconds > 0 && Clock::now() < end)) run(mutator.next()), ++runs;
  std::printf("%zu inputs, %llu changed ones\n", corpus.size(), static_cast<unsigned long long>(runs));
}
