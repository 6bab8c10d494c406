// Keys' cubic convolution kernel (Keys 1981, eq. 4), with support [-2, 2].
#pragma once

#include <cmath>

namespace orchard {

constexpr double bicubic_support = 2.0;

inline double bicubic(double distance, double a) {
  const double x = std::abs(distance);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

}  // namespace orchard
