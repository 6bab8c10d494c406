// Optimizer updates on fp32 master weights. Gradients are multiplied by `gradient_scale` (the clip
// factor, of kernels/optimizer/gradient_norm.h) as they are read. Where it is not finite they are not
// to be used: weights, copy, moments and statistics keep the bits that they have. `copy`, if given,
// receives the new weights in bf16. Bound by memory.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// Decoupled AdamW (Loshchilov & Hutter 2019, algorithm 2) with bias correction:
//   m = β1·m + (1-β1)·g;  v = β2·v + (1-β2)·g²
//   w = w - lr·(m/(1-β1^t)) / (sqrt(v/(1-β2^t)) + ε) - lr·weight_decay·w
// m and v are zero before the first step. 28 bytes per element, 30 with the copy.
struct AdamW {
  Tensor weights;                   // f32 [n]
  ConstTensor gradients;            // f32 [n]
  Tensor m, v;                      // f32 [n]
  Tensor copy = {};                 // bf16 [n]; absent: none
  ConstTensor gradient_scale = {};  // f32 [1]; absent: 1
  float lr = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0;
  std::int64_t step = 1;  // from 1
};

// AdaFactor (Shazeer & Stern 2018, algorithms 4 and 5, as AXLearn runs it), one block:
//   g² + 1e-30;  β2 = 1 - t^-0.8
//   factored [rows, cols]: v_row = EMA of the mean over cols, v_col = EMA of the mean over rows,
//     u = g · (v_row / mean(v_row))^-1/2 · v_col^-1/2;  else full v, u = g · v^-1/2
//   u /= max(1, rms(u) / clip_threshold);  w -= lr·u + weight_decay·w
// Statistics are zero before the first step. The update is not stored: 20 bytes per element when
// factored (three readings of the gradient), else 28; 2 more with the copy.
struct AdaFactor {
  Tensor weights;                   // f32 [rows, cols] when factored, else any shape
  ConstTensor gradients;            // f32, same shape
  Tensor v_row = {};                // f32 [rows]   present when factored
  Tensor v_col = {};                // f32 [cols]   present when factored
  Tensor v = {};                    // f32, shape of weights; present when not factored
  Tensor copy = {};                 // bf16, shape of weights; absent: none
  ConstTensor gradient_scale = {};  // f32 [1]; absent: 1
  float lr = 0;
  float clip_threshold = 1;
  float weight_decay = 0;  // already multiplied by whatever the recipe's exponent asks for
  std::int64_t step = 1;   // from 1
};

// AdaFactor of a block that is spread over ranks, in three parts: between them what the ranks
// measured is added up. Gradients and weights are this rank's part: [own rows, own cols] of a
// factored block of [rows, cols], else any shape. g includes gradient_scale; where that is not finite
// the sums between the parts are of no worth.
//
// Part 1, of factored blocks: 4 bytes per element.
//   row_sums = sum over own cols of g² + 1e-30;  col_sums = sum over own rows of g² + 1e-30
struct AdaFactorSums {
  ConstTensor gradients;            // f32 [own rows, own cols]
  Tensor row_sums;                  // f32 [own rows]
  Tensor col_sums;                  // f32 [own cols]
  ConstTensor gradient_scale = {};  // f32 [1]; absent: 1
};

// Part 2: the statistics of the whole block, and the size of this rank's part of the raw update.
//   factored: v_row = EMA(row_sums / cols), v_col = EMA(col_sums / rows); else v = EMA(g² + 1e-30)
//   squares = sum of u²
// Every rank keeps v_col of all columns: its mean is that of v_row over all rows, since both are
// the moving average of the mean of g² + 1e-30. 4 bytes per element when factored, else 12.
struct AdaFactorMeasure {
  ConstTensor gradients;            // f32
  ConstTensor row_sums = {};        // f32 [own rows], over all columns   present when factored
  ConstTensor col_sums = {};        // f32 [cols], over all rows          present when factored
  Tensor v_row = {};                // f32 [own rows]                     present when factored
  Tensor v_col = {};                // f32 [cols]                         present when factored
  Tensor v = {};                    // f32, shape of gradients            present when not factored
  Tensor squares;                   // f32 [1]
  std::int64_t rows = 0;            // of the whole block, when factored
  std::int64_t first_col = 0;       // of this rank's, when factored
  ConstTensor gradient_scale = {};  // f32 [1]; absent: 1
  std::int64_t step = 1;            // from 1
};

// Part 3: u /= max(1, rms(u) / clip_threshold);  w -= lr·u + weight_decay·w, with the rms of the whole
// block. 12 bytes per element when factored, else 16; 2 more with the copy.
struct AdaFactorApply {
  Tensor weights;                   // f32
  ConstTensor gradients;            // f32, same shape
  ConstTensor v_row = {};           // f32 [own rows]   present when factored
  ConstTensor v_col = {};           // f32 [cols]       present when factored
  ConstTensor v = {};               // f32              present when not factored
  Tensor copy = {};                 // bf16, shape of weights; absent: none
  ConstTensor squares;              // f32 [1], of all ranks' parts: sum of u²
  std::int64_t count = 0;           // elements of the whole block
  std::int64_t first_col = 0;       // of this rank's, when factored
  ConstTensor gradient_scale = {};  // f32 [1]; absent: 1
  // In double, as what comes of them, lr / max(1, rms(u) / clip_threshold), is rounded once.
  double lr = 0;
  double clip_threshold = 1;
  float weight_decay = 0;
};

void run(Stream&, const AdamW&);
void run(Stream&, const AdaFactorSums&);
void run(Stream&, const AdaFactorMeasure&);
void run(Stream&, const AdaFactorApply&);
void run(Stream&, const AdaFactor&);

}  // namespace orchard
