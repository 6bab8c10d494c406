// Moving tokens to their experts and back. Rows of the expert buffer are ordered by (expert,
// token); each expert's rows are padded with zero rows to a multiple of `row_multiple`, so that
// GEMM shapes repeat; rows on their way to another rank are not padded, or have groups of a fixed
// size, with zero rows where an expert has fewer choices. Bound by memory. x, rows and
// their gradients share one dtype, f32 or bf16; gates are f32. d_x may alias d_extra, and d_rows may
// alias rows. The CPU checks indices and the size of the plan; GPUs, whose indices no host code
// reads, do not, and ask for the rows of the worst case (max_expert_rows) and for at most 256
// experts.
//
// Where several ranks hold a part of each expert, a choice has as many rows as there are parts: a
// slot is [tokens, k · parts], the rows of choice j are its columns [j · parts, (j + 1) · parts), and
// they share the choice's gate.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

inline constexpr std::int64_t row_multiple = 32;
inline constexpr int max_slots = 32;  // of a token: k · parts

// Rows that the worst routing can need.
constexpr std::int64_t max_expert_rows(std::int64_t tokens, std::int64_t k, std::int64_t experts,
                                       std::int64_t multiple = row_multiple) {
  return (tokens * k + experts * (multiple - 1)) / multiple * multiple;
}

struct PermutePlan {
  ConstTensor experts;  // i32 [tokens, k], -1: no row. One token's choices are distinct
  Tensor row_offsets;   // i32 [experts + 1], multiples of `multiple`
  Tensor source;        // i32 [max_rows]: token of each row, -1 for padding and beyond the last row
  Tensor slot;          // i32 [tokens, k]: row of each choice, -1: none
  std::int64_t multiple = row_multiple;  // that each expert's rows are padded to; 1: none
  // Rows of every expert's group, a multiple of `multiple`: row_offsets[e] = e · group_rows. No
  // expert may have more choices, which the CPU checks. 0: groups have their choices' rows, padded
  std::int64_t group_rows = 0;
};

// rows[r] = x[source[r]], zeros where source is -1 (only rows below row_offsets[experts] are
// written). With the plan's slot a GPU reads a token once for all its rows.
struct DispatchForward {
  ConstTensor x;            // [tokens, hidden]
  ConstTensor source;       // i32 [max_rows]
  ConstTensor slot = {};    // i32 [tokens, k · parts]; absent: not at hand
  ConstTensor row_offsets;  // i32 [experts + 1]
  Tensor rows;              // [max_rows, hidden]
};

// d_x[t] = d_extra[t], then plus d_rows[slot[t, i]] for every column i in order, in fp32.
struct DispatchBackward {
  ConstTensor d_rows;        // [max_rows, hidden]
  ConstTensor slot;          // i32 [tokens, k · parts]
  ConstTensor d_extra = {};  // [tokens, hidden]; absent: none
  Tensor d_x;                // [tokens, hidden]
};

// y[t] = sum over columns i, in order, of gates[t, i / parts] · rows[slot[t, i]], in fp32.
struct CombineForward {
  ConstTensor rows;   // [max_rows, hidden]
  ConstTensor slot;   // i32 [tokens, k · parts]
  ConstTensor gates;  // f32 [tokens, k]
  Tensor y;           // [tokens, hidden]
};

// d_rows[slot[t, i]] = gates[t, i / parts] · d_y[t], zeros for padding rows, untouched past the last
// group; d_gates[t, j] = the dot product of d_y[t] and the sum of the rows of choice j, 0 where it
// has none.
struct CombineBackward {
  ConstTensor rows;              // [max_rows, hidden]
  ConstTensor source = {};       // i32 [max_rows]; absent, with row_offsets: there is no padding
  ConstTensor slot, gates;       // i32 [tokens, k · parts], f32 [tokens, k]
  ConstTensor row_offsets = {};  // i32 [experts + 1]
  ConstTensor d_y;               // [tokens, hidden]
  Tensor d_rows;                 // [max_rows, hidden]
  Tensor d_gates;                // f32 [tokens, k]
};

void run(Stream&, const PermutePlan&);
void run(Stream&, const DispatchForward&);
void run(Stream&, const DispatchBackward&);
void run(Stream&, const CombineForward&);
void run(Stream&, const CombineBackward&);

}  // namespace orchard
