// Moving tokens to their experts and back. Rows of the expert buffer are ordered by (expert,
// token); each expert's rows are padded with zero rows to a multiple of `row_multiple`, so that
// GEMM shapes repeat. Bound by memory. x, rows and their gradients share one dtype, f32 or bf16;
// gates are f32. k is at most max_top_k (router.h). d_x may alias d_extra, and d_rows may alias
// rows. The CPU checks indices and the size of the plan; GPUs, whose indices no host code reads, do
// not, and ask for the rows of the worst case (max_expert_rows) and for at most 256 experts.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

inline constexpr std::int64_t row_multiple = 32;

// Rows that the worst routing can need.
constexpr std::int64_t max_expert_rows(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
  return (tokens * k + experts * (row_multiple - 1)) / row_multiple * row_multiple;
}

struct PermutePlan {
  ConstTensor experts;  // i32 [tokens, k], -1: no row. One token's choices are distinct
  Tensor row_offsets;   // i32 [experts + 1], multiples of row_multiple
  Tensor source;        // i32 [max_rows]: token of each row, -1 for padding and beyond the last row
  Tensor slot;          // i32 [tokens, k]: row of each choice, -1: none
};

// rows[r] = x[source[r]], zeros where source is -1 (only rows below row_offsets[experts] are
// written).
struct DispatchForward {
  ConstTensor x;            // [tokens, hidden]
  ConstTensor source;       // i32 [max_rows]
  ConstTensor row_offsets;  // i32 [experts + 1]
  Tensor rows;              // [max_rows, hidden]
};

// d_x[t] = d_extra[t], then plus d_rows[slot[t, j]] for every choice j in choice order, in fp32.
struct DispatchBackward {
  ConstTensor d_rows;        // [max_rows, hidden]
  ConstTensor slot;          // i32 [tokens, k]
  ConstTensor d_extra = {};  // [tokens, hidden]; absent: none
  Tensor d_x;                // [tokens, hidden]
};

// y[t] = sum over choices j, in choice order, of gates[t, j] · rows[slot[t, j]], in fp32.
struct CombineForward {
  ConstTensor rows;   // [max_rows, hidden]
  ConstTensor slot;   // i32 [tokens, k]
  ConstTensor gates;  // f32 [tokens, k]
  Tensor y;           // [tokens, hidden]
};

// d_rows[slot[t, j]] = gates[t, j] · d_y[t], zeros for padding rows, untouched past the last group;
// d_gates[t, j] = the dot product of d_y[t] and rows[slot[t, j]], 0 where slot is -1.
struct CombineBackward {
  ConstTensor rows, source, slot, gates, row_offsets;
  ConstTensor d_y;  // [tokens, hidden]
  Tensor d_rows;    // [max_rows, hidden]
  Tensor d_gates;   // f32 [tokens, k]
};

void run(Stream&, const PermutePlan&);
void run(Stream&, const DispatchForward&);
void run(Stream&, const DispatchBackward&);
void run(Stream&, const CombineForward&);
void run(Stream&, const CombineBackward&);

}  // namespace orchard
