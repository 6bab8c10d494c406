// Rows on their way between ranks: which rank wants a choice, blocks of rows put into another order,
// and rows that take their targets along. Nothing is computed; all are bound by memory and move each
// byte once in and once out.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

enum class Repeats : std::uint8_t {
  keep,
  drop,  // of equal targets of one token, the first alone stays; the others become -1
};

// targets[t, j · parts + p] = table[experts[t, j], p], -1 where there is no expert.
struct MapChoices {
  ConstTensor experts;  // i32 [tokens, k], -1: none
  ConstTensor table;    // i32 [experts, parts], -1: no target
  Tensor targets;       // i32 [tokens, k · parts]
  Repeats repeats = Repeats::keep;
};

// For every run: y[to + i] = x[from + i] for i below count, zeros where from is -1. Runs do not
// overlap in y; rows of y that no run names stay as they are.
struct CopyRuns {
  ConstTensor x;     // [rows, ...], any dtype
  ConstTensor runs;  // i32 [runs, 3]: from, to, count
  Tensor y;          // [other rows, ...]
};

// One row of x and its token's targets, side by side, so that one message carries both:
//   packed[r] = x[source[r]], targets[source[r]]
struct PackRows {
  ConstTensor x;        // [tokens, hidden]
  ConstTensor targets;  // i32 [tokens, slots]
  ConstTensor source;   // i32 [at least rows]: token of each row
  Tensor packed;        // u8 [rows, packed_row_bytes]
};
struct UnpackRows {
  ConstTensor packed;  // u8 [rows, packed_row_bytes]
  Tensor x;            // [rows, hidden]
  Tensor targets;      // i32 [rows, slots]
};

// Bytes before the targets: a multiple of 16, so that copies by vectors stay aligned.
constexpr std::int64_t packed_targets_offset(std::int64_t hidden, DType dtype) {
  return (hidden * static_cast<std::int64_t>(size_of(dtype)) + 15) / 16 * 16;
}
constexpr std::int64_t packed_row_bytes(std::int64_t hidden, DType dtype, std::int64_t slots) {
  return (packed_targets_offset(hidden, dtype) + 4 * slots + 15) / 16 * 16;
}

void run(Stream&, const MapChoices&);
void run(Stream&, const CopyRuns&);
void run(Stream&, const PackRows&);
void run(Stream&, const UnpackRows&);

}  // namespace orchard
