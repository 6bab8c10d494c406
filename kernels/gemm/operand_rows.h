// Which rows of an operand a block fetches: those that lie one after the other, or, of the tokens of a
// grouped product, those that an index names.
#pragma once

#include <cstdint>

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// The operand whose rows an index may name: of a, rows of c; of b, rows that are summed over.
enum class Gathers : std::uint8_t { nothing, a, b };

// Positions from `first` on; from `end` on there are zeros.
struct Span {
  int first, end;

  __device__ bool has(int, int row) const { return first + row < end; }
  __device__ int at(int, int row) const { return first + row; }
};

// The rows, of `rows`, from which a thread fetches: `beside` neighbouring threads share a row. They are
// looked up before they are needed, so that a fetch does not wait for its addresses.
template <int rows, int beside, int threads>
struct NamedRows {
  static constexpr int apart = threads / beside, count = rows / apart;
  static_assert(apart * beside == threads && count * apart == rows);

  int index[count];  // -1: zeros

  __device__ static int own_row(int i) {
    return static_cast<int>(threadIdx.x) % threads / beside + i * apart;
  }

  // Rows from span.first on, or those that `source`, unless it is null, has in their places.
  __device__ void look_up(const int* source, const Span& span) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int row = span.first + own_row(i);
      index[i] = row >= span.end ? -1 : source != nullptr ? load_readonly(source + row) : row;
    }
  }

  // The thread's i-th row, as Span has it.
  __device__ bool has(int i, int) const {
    return index[i] >= 0;
  }
  __device__ int at(int i, int) const {
    return index[i];
  }
};

}  // namespace orchard::GPU_NAMESPACE
