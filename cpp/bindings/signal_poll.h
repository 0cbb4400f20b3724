// Ctrl-C during long calls.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>

namespace slimformer::bindings {

// Called often while the interpreter is released; lets it look for signals every 50 ms, which is
// soon enough for a hand on the keyboard and too seldom to be felt. Throws what the signal's
// handler raised.
class SignalPoll {
 public:
  void operator()() {
    const auto now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return;
    last_ = now;
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

}  // namespace slimformer::bindings
