// The weights of one pass of an antialiased bicubic resize: for output i of `size` outputs, inputs
// first[i] ... first[i] + count[i] - 1 of `in_size`, with weights that sum to one. The interval and
// the sampling points are Pillow's.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/device/scratch.h"
#include "kernels/image/bicubic.h"

namespace orchard::cpu {

class ResizeFilter {
 public:
  struct Reserved {
    std::int64_t in_size, size, max_taps;
    ScratchArray<std::int32_t> first, count;
    ScratchArray<float> weights;
  };

  static Reserved reserve(ScratchLayout& layout, std::int64_t in_size, std::int64_t size) {
    const double support = bicubic_support * stretch(in_size, size);
    const std::int64_t max_taps = 2 * static_cast<std::int64_t>(std::ceil(support)) + 1;
    return {in_size,
            size,
            max_taps,
            layout.add<std::int32_t>(size),
            layout.add<std::int32_t>(size),
            layout.add<float>(size * max_taps)};
  }

  ResizeFilter(const Reserved& reserved, std::byte* scratch)
      : first(reserved.first.in(scratch)),
        count(reserved.count.in(scratch)),
        weights_(reserved.weights.in(scratch)),
        max_taps_(reserved.max_taps) {
    const double scale = static_cast<double>(reserved.in_size) / static_cast<double>(reserved.size);
    const double wide = stretch(reserved.in_size, reserved.size);
    for (std::int64_t i = 0; i < reserved.size; ++i) {
      const double centre = (static_cast<double>(i) + 0.5) * scale;
      const double support = bicubic_support * wide;
      const auto begin =
          std::max<std::int64_t>(0, static_cast<std::int64_t>(centre - support + 0.5));
      const auto end = std::min<std::int64_t>(reserved.in_size,
                                              static_cast<std::int64_t>(centre + support + 0.5));
      const auto weight_at = [&](std::int64_t input) {
        return bicubic((static_cast<double>(input) - centre + 0.5) / wide, -0.5);
      };
      double total = 0;
      for (std::int64_t input = begin; input < end; ++input) total += weight_at(input);
      first[i] = static_cast<std::int32_t>(begin);
      count[i] = static_cast<std::int32_t>(end - begin);
      for (std::int64_t input = begin; input < end; ++input) {
        weights_[i * max_taps_ + input - begin] = static_cast<float>(weight_at(input) / total);
      }
    }
  }

  const float* weights_of(std::int64_t i) const { return weights_ + i * max_taps_; }

  std::int32_t* const first;
  std::int32_t* const count;

 private:
  // How much wider than on the input grid the kernel is: antialias when shrinking.
  static double stretch(std::int64_t in_size, std::int64_t size) {
    return std::max(1.0, static_cast<double>(in_size) / static_cast<double>(size));
  }

  float* weights_;
  std::int64_t max_taps_;
};

}  // namespace orchard::cpu
