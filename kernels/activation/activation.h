// Pointwise activations. f32 or bf16, all tensors of an operation alike; arithmetic in fp32.
// Bound by memory: bytes are elements touched times their size. Outputs may alias inputs of the
// same shape.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

enum class Activation : std::uint8_t {
  quick_gelu,  // x · sigmoid(1.702 x), as OpenAI's CLIP
  silu,        // x · sigmoid(x)
};

struct ActivationForward {
  Activation kind;
  ConstTensor x;
  Tensor y;
};
struct ActivationBackward {
  Activation kind;
  ConstTensor x;  // forward's input
  ConstTensor d_y;
  Tensor d_x;
};

// SwiGLU (Shazeer 2020, eq. 5): y = silu(gate) · up. `row_count`, i32 [1] on the device, limits the
// work to the leading rows of [rows, cols]: the experts' buffers are sized for the worst case.
// Absent: all rows. A count outside [0, rows] is an error on the CPU; a GPU takes the nearer end.
struct SwiGluForward {
  ConstTensor gate, up;  // [rows, cols]
  Tensor y;              // [rows, cols]
  ConstTensor row_count = {};
};
struct SwiGluBackward {
  ConstTensor gate, up, d_y;  // [rows, cols]
  Tensor d_gate, d_up;        // [rows, cols]
  Tensor y =
      {};  // [rows, cols] recomputed forward output, for the weight gradient; absent: not wanted
  ConstTensor row_count = {};
};

// y = x · sigmoid(scale) with one scale per (image, channel): the excitation of Hu et al. 2018,
// eq. 4.
struct ExciteForward {
  ConstTensor x;      // [images, pixels, channels]
  ConstTensor scale;  // [images, channels]
  Tensor y;           // [images, pixels, channels]
};
struct ExciteBackward {
  ConstTensor x, scale, d_y;
  Tensor d_x;      // [images, pixels, channels]
  Tensor d_scale;  // [images, channels]
};

void run(Stream&, const ActivationForward&);
void run(Stream&, const ActivationBackward&);
void run(Stream&, const SwiGluForward&);
void run(Stream&, const SwiGluBackward&);
void run(Stream&, const ExciteForward&);
void run(Stream&, const ExciteBackward&);

}  // namespace orchard
