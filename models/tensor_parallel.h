// Where tensor ranks meet. A pair of products is cut between them: the first by its output columns
// (ColumnLinears), the second by its input columns (RowLinear), whose outputs are parts of a sum.
// Before and after a pair activations are *local*: whole on every tensor rank, or, under sequence
// parallelism, this rank's share of the rows, which are padded with zero rows to a multiple of the
// ranks and cut evenly (Korthikanti et al. 2022, §4.2). Inside a pair they have all rows, without
// padding. On one tensor rank nothing here costs anything.
#pragma once

#include "models/layer.h"

namespace orchard {

// This rank among those that share a layer.
Place tensor_place(const Pass& pass);

// Rows of the local share of `rows` rows.
std::int64_t local_rows(const Pass& pass, std::int64_t rows);
std::int64_t local_rows(const ParallelContext* parallel, std::int64_t rows);  // as Pass has it

// [local rows, width] -> [rows, width]: those of all tensor ranks. x itself where nothing is cut.
ConstTensor gather_rows(const Pass& pass, ConstTensor x, std::int64_t rows);

// [rows, width] -> [local rows, width]: this rank's share of what it has all of.
ConstTensor share_of_rows(const Pass& pass, ConstTensor x);

// The sum over tensor ranks of something [rows, width] of which each computes a part. Parts are
// added in fp32 and rounded once. Until finish(), memory that others take from the arena is freed
// with the sum's.
class RowSum {
 public:
  // y [local rows, width] receives the sum. Parts are f32 unless they need no rounding in `parts`.
  RowSum(const Pass& pass, std::int64_t rows, Tensor y, DType parts = DType::f32);

  // [rows, width]: to be filled before finish. On one rank it is y.
  Tensor part() const { return part_; }
  void finish();

 private:
  const Pass& pass_;
  Tensor y_;
  ArenaScope scope_;
  Tensor all_;   // [ranks · local rows, width] under sequence parallelism
  Tensor part_;  // its first rows, or y
};

}  // namespace orchard
