// Progress of a long operation that is not training: packing, evaluating, reading a checkpoint.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "train/terminal.h"

namespace orchard {

// Seconds of a steady clock.
using SecondsClock = std::function<double()>;
SecondsClock steady_seconds();

// "packing 1200/5000 samples (24%), 310/s, 12 s left": ten times a second on a live terminal, every
// ten seconds on a plain one, and once at the end.
class Progress {
 public:
  // "<doing> n/total <units>". total = 0: not known, so neither share nor time left is shown. Says
  // nothing, its end included, of what is over within `quiet_seconds`.
  Progress(Terminal& terminal, std::string doing, std::string units, std::int64_t total,
           SecondsClock clock = steady_seconds(), double quiet_seconds = 0);

  void advance(std::int64_t count = 1) { reach(done_ + count); }
  // For operations that count by themselves.
  void reach(std::int64_t done);
  // The closing line. An operation that throws leaves it out.
  void finish();

 private:
  std::string line() const;

  Terminal& terminal_;
  std::string doing_, units_;
  std::int64_t total_, done_ = 0;
  SecondsClock clock_;
  double start_, shown_, quiet_;
  bool spoke_ = false;
};

// Hears from a long operation how much of it is done: (0, total) as it begins, (total, total) at its
// end. Empty: nobody listens.
using ProgressHook = std::function<void(std::int64_t done, std::int64_t total)>;

// A hook that shows operations on the terminal, one after the other, those that take more than a few
// seconds. `terminal` must outlive it.
ProgressHook patient_progress(Terminal& terminal, std::string doing, std::string units,
                              SecondsClock clock = steady_seconds());

}  // namespace orchard
