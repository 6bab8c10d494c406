// The rows of an operand that an index names, on their way to gemm_sm90.cu's ring: 16 bytes a thread, by
// cp.async, to where the copy engine puts a box with the 128-byte swizzle. Eight neighbouring threads copy
// the 128 bytes of a row that a box has: whole lines of global memory, and of all banks.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/core/tensor.h"
#include "kernels/gemm/operand_rows.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/cp_async.h"

namespace orchard::GPU_NAMESPACE {

constexpr int chunk_elements = 8;  // of 16 bytes
constexpr int chunks_in_line = 8;  // of 128 bytes

// A grouped schedule, and the tokens that the products read: a's rows, or those that are summed over.
template <class Schedule>
struct Gathering : Schedule {
  const bf16* tokens;
  std::int64_t stride;  // elements from token to token
  const int* source;    // token of each row; -1: zeros
};

template <class Schedule>
Gathering<Schedule> gathering(const Schedule& schedule, const ConstTensor& tokens,
                              const ConstTensor& source) {
  return {schedule, tokens.data<bf16>(), tokens.dim(-1), source.data<std::int32_t>()};
}

template <class Schedule>
constexpr bool is_gathering = false;
template <class Schedule>
constexpr bool is_gathering<Gathering<Schedule>> = true;

// Starts the copies of `boxes` boxes, which lie side by side in the operand and one after the other at
// `to`: these rows from column cols.first on, zeros where there is no row or no column.
template <int boxes, class Schedule, int rows, int threads>
__device__ void copy_named_rows(bf16* to, const Gathering<Schedule>& from,
                                const NamedRows<rows, chunks_in_line, threads>& named,
                                const Span& cols) {
  constexpr int line = chunk_elements * chunks_in_line;
  const int chunk = static_cast<int>(threadIdx.x) % chunks_in_line;
#pragma unroll
  for (int i = 0; i < named.count; ++i) {
    const int row = named.own_row(i);
    const int swizzled = chunk ^ row % 8;
#pragma unroll
    for (int box = 0; box < boxes; ++box) {
      const int col = cols.first + box * line + chunk * chunk_elements;
      const bool inside = named.has(i, row) && col < cols.end;
      const bf16* const source =
          inside ? from.tokens + named.at(i, row) * from.stride + col : from.tokens;
      cp_async_16(to + (box * rows + row) * line + swizzled * chunk_elements, source,
                  inside ? 16 : 0);
    }
  }
}

}  // namespace orchard::GPU_NAMESPACE
