// Optimizer updates on fp32 master weights. Gradients are multiplied by `gradient_scale` (the clip
// factor) as they are read. `copy`, if given, receives the new weights in bf16. Bound by memory.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// Decoupled AdamW (Loshchilov & Hutter 2019, algorithm 2) with bias correction:
//   m = β1·m + (1-β1)·g;  v = β2·v + (1-β2)·g²
//   w = w - lr·(m/(1-β1^t)) / (sqrt(v/(1-β2^t)) + ε) - lr·weight_decay·w
// m and v are zero before the first step. 28 bytes per element, 30 with the copy.
struct AdamW {
  Tensor weights;         // f32 [n]
  ConstTensor gradients;  // f32 [n]
  Tensor m, v;            // f32 [n]
  Tensor copy = {};       // bf16 [n]; absent: none
  float gradient_scale = 1;
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
  Tensor weights;         // f32 [rows, cols] when factored, else any shape
  ConstTensor gradients;  // f32, same shape
  Tensor v_row = {};      // f32 [rows]   present when factored
  Tensor v_col = {};      // f32 [cols]   present when factored
  Tensor v = {};          // f32, shape of weights; present when not factored
  Tensor copy = {};       // bf16, shape of weights; absent: none
  float gradient_scale = 1;
  float lr = 0;
  float clip_threshold = 1;
  float weight_decay = 0;  // already multiplied by whatever the recipe's exponent asks for
  std::int64_t step = 1;   // from 1
};

void run(Stream&, const AdamW&);
void run(Stream&, const AdaFactor&);

}  // namespace orchard
