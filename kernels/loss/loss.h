// Softmax cross-entropy over one chunk of logits. The caller chunks the target rows, so that logits
// exist for one chunk at a time. Bound by memory: reads and writes each logit once.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// losses[r] = logsumexp(logits[r]) - logits[r, targets[r]]
// d_logits[r, j] = scale · (softmax(logits[r])[j] - [j == targets[r]])
// A target outside [-1, vocab) is an error on the CPU, where it is seen before anything is written; on
// a GPU it makes the row's loss NaN and its gradient zero. A logit of -inf is a masked token, a NaN
// gives a NaN loss.
struct CrossEntropy {
  ConstTensor logits;    // f32 [rows, vocab]
  ConstTensor targets;   // i32 [rows], each in [0, vocab); -1: loss and gradient are zero
  float scale = 1;       // 1 / number of target tokens of the whole optimizer step
  Tensor losses;         // f32 [rows]
  Tensor d_logits = {};  // f32 or bf16 [rows, vocab]; may alias logits when f32; absent: loss only
};

void run(Stream&, const CrossEntropy&);

}  // namespace orchard
