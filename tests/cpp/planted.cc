// A bug of each kind: shows that the sanitizer is there, and that our own code is not among what it leaves out.
//
//   planted address|undefined|thread
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

namespace {

int read_freed_memory() {
  auto* values = new std::vector<int>(1000, 1);
  const int* inside = values->data();
  delete values;
  return inside[500];
}

int overflow(int one) { return std::numeric_limits<int>::max() + one; }

int race() {
  std::vector<char> shared(1000);
  const std::string text(1000, 'x');
  std::thread other([&] { std::memcpy(shared.data(), text.data(), text.size()); });
  std::memcpy(shared.data(), text.data(), text.size());
  other.join();
  return shared[0];
}

}  // namespace

int main(int argc, char** argv) {
  const std::string kind = argc > 1 ? argv[1] : "";
  const int result = kind == "address" ? read_freed_memory() : kind == "undefined" ? overflow(argc - 1) : race();
  std::printf("nothing reported, result %d\n", result);
}
