// Keys' cubic convolution kernel (Keys 1981, eq. 4), with support [-2, 2], and the inputs that an
// antialiased resize weighs with it. constexpr, so that GPU kernels can call them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace orchard {

constexpr double bicubic_support = 2.0;

constexpr double bicubic(double distance, double a) {
  const double x = distance < 0 ? -distance : distance;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// How much wider than on the input grid the kernel is: antialias when shrinking.
constexpr double resize_stretch(std::int64_t in_size, std::int64_t size) {
  return std::max(1.0, static_cast<double>(in_size) / static_cast<double>(size));
}

// Pillow rounds the ends of the interval by adding a half and cutting, so not as lround does below 0.
constexpr std::int64_t cut(double x) {
  return static_cast<std::int64_t>(x);
}

// The inputs [begin, end) of `in_size` that output i of `size` weighs. The interval and the sampling
// points are Pillow's; weights are relative, to be divided by their sum.
struct ResizeTaps {
  double centre, stretch;
  std::int64_t begin, end;

  constexpr ResizeTaps(std::int64_t i, std::int64_t in_size, std::int64_t size)
      : centre((static_cast<double>(i) + 0.5) *
               (static_cast<double>(in_size) / static_cast<double>(size))),
        stretch(resize_stretch(in_size, size)),
        begin(std::max<std::int64_t>(0, cut(centre - support() + 0.5))),
        end(std::min<std::int64_t>(in_size, cut(centre + support() + 0.5))) {}

  constexpr double support() const { return bicubic_support * stretch; }
  constexpr double weight(std::int64_t input) const {
    return bicubic((static_cast<double>(input) - centre + 0.5) / stretch, -0.5);
  }
  constexpr double total() const {
    double sum = 0;
    for (std::int64_t input = begin; input < end; ++input) sum += weight(input);
    return sum;
  }
};

// No output has more.
constexpr std::int64_t max_resize_taps(std::int64_t in_size, std::int64_t size) {
  const double support = bicubic_support * resize_stretch(in_size, size);
  const auto whole = static_cast<std::int64_t>(support);
  return 2 * (static_cast<double>(whole) < support ? whole + 1 : whole) + 1;
}

}  // namespace orchard
