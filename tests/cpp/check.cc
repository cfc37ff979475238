#include "check.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "net/zmq_api.h"

namespace check {
namespace {

struct Named {
  const char* name;
  Body body;
};

// Functions, because the registering objects of other files may be built first.
std::vector<Named>& tests() {
  static std::vector<Named> list;
  return list;
}

std::map<std::string, RoleBody>& roles() {
  static std::map<std::string, RoleBody> table;
  return table;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int run_tests(const std::string& wanted) {
  int count = 0;
  for (const Named& test : tests()) {
    if (std::string(test.name).find(wanted) == std::string::npos) continue;
    std::printf("  %s\n", test.name);
    std::fflush(stdout);
    test.body();
    ++count;
  }
  std::printf("%d tests passed, seed %llu\n", count, static_cast<unsigned long long>(seed()));
  return count > 0 ? 0 : 2;
}

int run_role(const std::vector<std::string>& words) {
  const auto found = roles().find(words.empty() ? "" : words[0]);
  if (found == roles().end()) return 2;
  found->second({words.begin() + 1, words.end()});
  return 0;
}

}  // namespace

Test::Test(const char* name, Body body) { tests().push_back({name, body}); }
Role::Role(const char* name, RoleBody body) { roles()[name] = body; }

std::uint64_t seed() {
  static const std::string given = environment("ZMQPP_TEST_SEED");
  return given.empty() ? 1 : std::stoull(given);
}

void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
  std::fflush(nullptr);
  std::_Exit(1);  // not exit(): other threads are in the middle of something
}

}  // namespace check

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    zmqpp::net::load_zmq(check::environment("ZMQPP_ZMQ_LIBRARY"));
  } catch (const zmqpp::Error& error) {
    std::fprintf(stderr, "%s\nset ZMQPP_ZMQ_LIBRARY, as ctest does\n", error.what());
    return 2;
  }
  if (!words.empty() && words[0] == "--as") return check::run_role({words.begin() + 1, words.end()});
  return check::run_tests(words.empty() ? "" : words[0]);
}
