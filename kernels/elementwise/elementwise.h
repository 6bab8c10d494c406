// Sums, conversions and reductions over rows. Bound by memory.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// y = a + b, or y = a + b repeated along the outer dimension when b has fewer elements ([n, ...] +
// [...]). One dtype, f32 or bf16. y may alias a, and b when the shapes agree.
struct Add {
  ConstTensor a, b;
  Tensor y;
};

// y = x in another dtype (f32 <-> bf16, round to nearest even), or a copy when the dtypes agree.
struct Convert {
  ConstTensor x;
  Tensor y;
};

// x *= factor, in place.
struct Scale {
  Tensor x;
  float factor;
};

// y [cols] += sum over rows of x [rows, cols]; fp32 sum in a fixed order. The gradient of a bias or
// of a table that was added to every image.
struct ColumnSum {
  ConstTensor x;  // [rows, cols], f32 or bf16
  Tensor y;       // f32 [cols]
};

// result[0] = sum of x² in fp64 partial sums of a fixed shape, stored as f32.
struct SumOfSquares {
  ConstTensor x;  // f32
  Tensor result;  // f32 [1]
};

void run(Stream&, const Add&);
void run(Stream&, const Convert&);
void run(Stream&, const Scale&);
void run(Stream&, const ColumnSum&);
void run(Stream&, const SumOfSquares&);

}  // namespace orchard
