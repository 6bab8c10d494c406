// Numbers that an operation finds in memory when it runs.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard::cpu {

// x, f32 [1], or what an operation without it takes.
inline float number_or(const ConstTensor& x, float absent) {
  return x ? *x.data<float>() : absent;
}

}  // namespace orchard::cpu
