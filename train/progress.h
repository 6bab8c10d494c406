// Progress of a long operation that is not training: packing, downloading, evaluating.
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
  // "<doing> n/total <units>". total = 0: not known, so neither share nor time left is shown.
  Progress(Terminal& terminal, std::string doing, std::string units, std::int64_t total,
           SecondsClock clock = steady_seconds());

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
  double start_, shown_;
};

}  // namespace orchard
