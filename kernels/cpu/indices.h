// The check of an index tensor. It runs before a parallel loop follows the indices, because an
// exception must not leave an OpenMP region.
#pragma once

#include <string_view>

#include "kernels/core/tensor.h"

namespace orchard::cpu {

// Every element of an i32 tensor lies in [low, high).
inline void check_indices(std::string_view operation, std::string_view name,
                          const ConstTensor& indices, std::int64_t low, std::int64_t high) {
  const std::int32_t* const p = indices.data<std::int32_t>();
  for (std::int64_t i = 0; i < indices.numel(); ++i) {
    require(p[i] >= low && p[i] < high, "{}: {}[{}] is {}, outside [{}, {})", operation, name, i,
            p[i], low, high);
  }
}

}  // namespace orchard::cpu
