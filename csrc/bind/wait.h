// Waiting from Python: without the GIL, in slices, so that Ctrl-C and other signals are heard.
//
// Blocks? until `ready` says true, the deadline passed (returns false), or a signal handler raised.
// Thread: call with the GIL held. `ready(slice)` runs without it and must not touch Python.
#pragma once

#include <pybind11/pybind11.h>

#include "base/deadline.h"

namespace zmqpp::bind {

inline constexpr double kSlice_s = 0.1;  // how late a Ctrl-C may be heard

template <typename Ready>
bool wait_in_slices(const Deadline& deadline, Ready ready) {
  while (true) {
    {
      const pybind11::gil_scoped_release release;
      if (ready(deadline.sooner(Deadline::after(kSlice_s)))) return true;
    }
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    if (deadline.expired()) return false;
  }
}

}  // namespace zmqpp::bind
