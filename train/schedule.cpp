#include "train/schedule.h"

#include <algorithm>
#include <cmath>

namespace orchard {

double learning_rate_law(double parameters) {
  return std::exp(-0.4214 * std::log(parameters) - 0.5535);
}

double Schedule::at(std::int64_t step) const {
  if (step < warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  const auto length = static_cast<double>(std::max<std::int64_t>(1, steps - warmup));
  const double progress = std::clamp(static_cast<double>(step - warmup) / length, 0.0, 1.0);
  return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + std::cos(M_PI * progress)));
}

}  // namespace orchard
