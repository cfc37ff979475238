// Starting the engine's threads.
//
// Blocks? never. Errors: kResource when the system refuses a thread.
#pragma once

#include <pthread.h>

#include <csignal>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"

namespace zmqpp {

// Signals stay with the caller's threads (Python handles them in its main thread); `name` shows in ps and gdb.
template <typename Body>
std::thread start_thread(const char* name, Body body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread thread(std::move(body));
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread.native_handle(), name);
    return thread;
  } catch (const std::system_error& e) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw Error(Code::kResource, "open", std::string("no thread: ") + e.what());
  }
}

}  // namespace zmqpp
