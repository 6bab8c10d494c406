// The one sum of collectives: fp32, in rank order, rounded once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/core/dtype.h"

namespace orchard::cpu {

// result[i] = sources[0][i] + sources[1][i] + ..., added up in fp32 in this order. f32 or bf16,
// host memory. `result` may be one of the sources.
void sum_in_rank_order(DType dtype, std::byte* result, std::span<const std::byte* const> sources,
                       std::int64_t count);

}  // namespace orchard::cpu
