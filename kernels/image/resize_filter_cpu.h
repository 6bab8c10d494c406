// The weights of one pass of an antialiased bicubic resize: for output i of `size` outputs, inputs
// first[i] ... first[i] + count[i] - 1 of `in_size`, with weights that sum to one.
#pragma once

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
    const std::int64_t max_taps = max_resize_taps(in_size, size);
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
    for (std::int64_t i = 0; i < reserved.size; ++i) {
      const ResizeTaps taps(i, reserved.in_size, reserved.size);
      const double total = taps.total();
      first[i] = static_cast<std::int32_t>(taps.begin);
      count[i] = static_cast<std::int32_t>(taps.end - taps.begin);
      for (std::int64_t input = taps.begin; input < taps.end; ++input) {
        weights_[i * max_taps_ + input - taps.begin] =
            static_cast<float>(taps.weight(input) / total);
      }
    }
  }

  const float* weights_of(std::int64_t i) const { return weights_ + i * max_taps_; }

  std::int32_t* const first;
  std::int32_t* const count;

 private:
  float* weights_;
  std::int64_t max_taps_;
};

}  // namespace orchard::cpu
