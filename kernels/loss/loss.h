// Softmax cross-entropy over one chunk of logits. The caller chunks the target rows, so that logits
// exist for one chunk at a time. Bound by memory: reads and writes each logit once.
#pragma once

#include "kernels/core/tensor.h"
#include "kernels/core/vocabulary_shard.h"

namespace orchard {

class Stream;

// losses[r] = logsumexp(logits[r]) - logits[r, targets[r]]
// d_logits[r, j] = scale · (softmax(logits[r])[j] - [j == targets[r]])
// A target outside [-1, vocab) is an error on the CPU, where it is seen before anything is written; on
// a GPU it makes the row's loss NaN and its gradient zero. A logit of -inf is a masked token, a NaN
// gives a NaN loss.
struct CrossEntropy {
  ConstTensor logits;   // f32 [rows, vocab]
  ConstTensor targets;  // i32 [rows], each in [0, vocab); -1: loss and gradient are zero
  // f32 [1], 1 / number of target tokens of the whole optimizer step; absent: 1. In memory, because
  // it changes from step to step, and the arguments of a graph do not.
  ConstTensor scale = {};
  Tensor losses;         // f32 [rows]
  Tensor d_logits = {};  // f32 or bf16 [rows, vocab]; may alias logits when f32; absent: loss only
};

// The same where a vocabulary is cut into ranges of equal length and each of several ranks has the
// logits of one: SoftmaxOfShard, then an all-gather of the statistics, then CrossEntropyOfShards.
// Bound by memory: each pass reads and writes a logit once.

// Of a row in a shard: its largest logit m, the sum of exp(logit - m), and the target's logit (0
// where it is another shard's).
inline constexpr int softmax_statistics = 3;

// exponentials[r, j] = exp(logits[r, j] - m[r]). A target outside [-1, vocabulary) is an error on
// the CPU, where it is seen before anything is written; on a GPU the row ends as CrossEntropy's does.
struct SoftmaxOfShard {
  ConstTensor logits;          // f32 [rows, shard]
  ConstTensor targets;         // i32 [rows] ids of the whole vocabulary; -1: none
  VocabularyShard shard = {};  // of the columns
  Tensor statistics;           // f32 [rows, 3]; of rows without a target undefined
  Tensor exponentials = {};    // f32 [rows, shard], may be logits; absent: not wanted. Likewise
};

// losses and d_logits as CrossEntropy's, on every rank alike but for its columns of d_logits. Terms
// are added in the order of the shards.
struct CrossEntropyOfShards {
  ConstTensor statistics;         // f32 [shards, rows, 3]
  ConstTensor targets;            // i32 [rows]
  int index = 0;                  // of this shard
  VocabularyShard shard = {};     // its columns
  ConstTensor scale = {};         // as CrossEntropy's
  Tensor losses;                  // f32 [rows]
  ConstTensor exponentials = {};  // f32 [rows, shard]; present exactly when d_logits is
  Tensor d_logits = {};           // f32 or bf16 [rows, shard]; may be exponentials when f32
};

void run(Stream&, const CrossEntropy&);
void run(Stream&, const SoftmaxOfShard&);
void run(Stream&, const CrossEntropyOfShards&);

}  // namespace orchard
