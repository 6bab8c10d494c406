// The norm of a gradient that lies in parts on several ranks, and the scale that clips it. Both stay on
// the device, so neither the update nor the host waits for the other:
//
//   SumOfSquares of each part, SumInOrder of this rank's, all_gather of all ranks', ClipByNorm
//
// Terms are added in fp64 one after the other, from the first on: the same bits on every rank and
// device. There are a few hundred; bound by the latency of memory. A number in fp64 is an i64 of the
// same bits, as no tensor of a model has this type.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// sum = terms[0] + terms[1] + ...
struct SumInOrder {
  ConstTensor terms;  // f32 [n]; absent: none
  Tensor sum;         // fp64 [1]
};

// norm = sqrt(squares[0] + squares[1] + ...)
// scale = clip_norm / norm if that is less than one, else 1; NaN where the norm is not finite, which
// the optimizers take for a gradient that is not to be used.
struct ClipByNorm {
  ConstTensor squares;   // fp64 [n], n > 0
  double clip_norm = 0;  // 0: none
  Tensor norm;           // fp64 [1]
  Tensor scale;          // f32 [1]
};

void run(Stream&, const SumInOrder&);
void run(Stream&, const ClipByNorm&);

}  // namespace orchard
