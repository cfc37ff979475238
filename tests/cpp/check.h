// A test library as small as these tests need. A test executable is one file of TESTs linked with check.cc:
//
//   EXECUTABLE                 runs all its tests
//   EXECUTABLE NAME            runs those whose name contains NAME
//   EXECUTABLE --as ROLE ...   is the other process of a test that needs one
//
// ZMQPP_ZMQ_LIBRARY names the libzmq to load; ctest sets it. ZMQPP_TEST_SEED replays other random numbers.
//
// The first check that fails prints where and ends the process, on whatever thread it happens.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace check {

using Body = void (*)();
using RoleBody = void (*)(const std::vector<std::string>& arguments);

struct Test {
  Test(const char* name, Body body);
};
struct Role {
  Role(const char* name, RoleBody body);
};

std::uint64_t seed();
[[noreturn]] void fail(const char* file, int line, const std::string& what);

template <typename A, typename B>
void equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (a == b) return;
  std::ostringstream found;
  found << text << ": " << a << " is not " << b;
  fail(file, line, found.str());
}

template <typename Call>
void error(const char* file, int line, zmqpp::Code code, const char* text, Call call) {
  try {
    call();
  } catch (const zmqpp::Error& e) {
    if (e.code() == code) return;
    fail(file, line, std::string(text) + ": code " + std::to_string(static_cast<int>(e.code())) + ", " + e.what());
  }
  fail(file, line, std::string(text) + ": no error");
}

}  // namespace check

#define TEST(name)                                      \
  static void name();                                   \
  static const check::Test registered_##name{#name, name}; \
  static void name()

#define ROLE(name, arguments)                                 \
  static void name(const std::vector<std::string>& arguments); \
  static const check::Role registered_##name{#name, name};       \
  static void name([[maybe_unused]] const std::vector<std::string>& arguments)

#define CHECK(holds) ((holds) ? void() : check::fail(__FILE__, __LINE__, #holds))
#define CHECK_EQUAL(a, b) check::equal(__FILE__, __LINE__, #a " == " #b, a, b)
#define CHECK_ERROR(code, expression) \
  check::error(__FILE__, __LINE__, code, #expression, [&] { static_cast<void>(expression); })
