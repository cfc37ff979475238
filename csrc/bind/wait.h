// Waiting from Python: without the GIL, in slices, so that Ctrl-C and other signals are heard.
//
// Blocks? until `ready` says true, the deadline passed (returns false), or a signal handler raised.
// Thread: call with the GIL held. `ready(slice)` runs without it and must not touch Python.
#pragma once

#include <pybind11/pybind11.h>

#include "base/deadline.h"
#include "base/error.h"

namespace zmqpp::bind {

inline constexpr double kSlice_s = 0.1;  // how late a Ctrl-C may be heard

// Runs without the GIL. Not by a guard: a daemon thread that comes back while Python ends is ended right there, by
// unwinding, which a destructor would turn into an abort.
template <typename Body>
auto without_gil(Body body) {
  PyThreadState* const thread = PyEval_SaveThread();
  try {
    auto result = body();
    PyEval_RestoreThread(thread);
    return result;
  } catch (const Error&) {
    PyEval_RestoreThread(thread);
    throw;
  }
}

template <typename Ready>
bool wait_in_slices(const Deadline& deadline, Ready ready) {
  while (true) {
    if (without_gil([&] { return ready(deadline.sooner(Deadline::after(kSlice_s))); })) return true;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    if (deadline.expired()) return false;
  }
}

}  // namespace zmqpp::bind
