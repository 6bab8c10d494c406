// Learning rates.
#pragma once

#include <cstdint>

namespace orchard {

// Peak learning rate of stage 1 for a dense backbone of `parameters` non-embedding parameters:
// exp(-0.4214·ln N - 0.5535) (MM1, §3.3).
double learning_rate_law(double parameters);

// Linear warm-up over `warmup` steps to `peak`, then a cosine to final_fraction·peak at the last
// step.
struct Schedule {
  double peak = 0;
  std::int64_t warmup = 0;
  std::int64_t steps = 0;
  double final_fraction = 0;

  // Of step 1 ... steps. Step w of the warm-up runs at peak·w/warmup.
  double at(std::int64_t step) const;
};

}  // namespace orchard
