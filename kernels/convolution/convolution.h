// Depthwise 3x3 convolution and adaptive average pooling, channels last. f32 or bf16, arithmetic in
// fp32, weight gradients fp32 and added to. Bound by memory: 2 elements per output (conv), input +
// output (pool).
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// Stride 1, zero padding 1: y[n,i,j,c] = sum over (r,s) of weight[c,r,s] · x[n, i+r-1, j+s-1, c].
struct DepthwiseConv3x3Forward {
  ConstTensor x;       // [images, height, width, channels]
  ConstTensor weight;  // [channels, 3, 3]
  Tensor y;            // [images, height, width, channels]
};
struct DepthwiseConv3x3BackwardInput {
  ConstTensor d_y, weight;
  Tensor d_x;
};
struct DepthwiseConv3x3BackwardWeight {
  ConstTensor x, d_y;
  Tensor d_weight;  // f32 [channels, 3, 3], added to
};

// Bin i of n inputs and m outputs averages inputs floor(i·n/m) ... ceil((i+1)·n/m) - 1; bins may
// overlap. One output per side is the global mean.
struct AdaptiveAveragePoolForward {
  ConstTensor x;  // [images, height, width, channels]
  Tensor y;       // [images, out_height, out_width, channels]
};
struct AdaptiveAveragePoolBackward {
  ConstTensor d_y;
  ConstTensor d_extra = {};  // [images, height, width, channels] added to the result; absent: none
  Tensor d_x;                // [images, height, width, channels]
};

void run(Stream&, const DepthwiseConv3x3Forward&);
void run(Stream&, const DepthwiseConv3x3BackwardInput&);
void run(Stream&, const DepthwiseConv3x3BackwardWeight&);
void run(Stream&, const AdaptiveAveragePoolForward&);
void run(Stream&, const AdaptiveAveragePoolBackward&);

}  // namespace orchard
