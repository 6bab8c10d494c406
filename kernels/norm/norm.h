// RMSNorm (Zhang & Sennrich 2019, eq. 4), LayerNorm (Ba et al. 2016, eq. 4), and the fused QK-norm
// + RoPE.
//
// Tensors x, y, their gradients and the weights share one dtype, f32 or bf16; statistics are fp32,
// weight gradients fp32 and added to. All of these are bound by memory: bytes are given at each
// struct for elements of e bytes; FLOPs stay below 10 per element. y may alias x, and d_x may alias
// d_y.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// sum = x + delta (if delta is given);  y = sum · rsqrt(mean(sum²) + epsilon) · weight, over the
// last dimension. Bytes: 2·e per element, 4·e with delta.
struct RmsNormForward {
  ConstTensor x;           // [rows, cols]
  ConstTensor delta = {};  // [rows, cols] added to x first; absent: none
  ConstTensor weight;      // [cols]
  Tensor sum = {};         // [rows, cols] receives x + delta; present exactly when delta is
  Tensor y;                // [rows, cols]
  Tensor inverse_rms;      // f32 [rows], for backward
  float epsilon = 1e-5f;
};

// d_x = gradient through the norm + d_sum (if given: the gradient that reaches x along the residual
// stream). Bytes: 3·e per element, 4·e with d_sum.
struct RmsNormBackward {
  ConstTensor x;       // [rows, cols] the normalised input (forward's sum, where there was a delta)
  ConstTensor weight;  // [cols]
  ConstTensor inverse_rms;  // f32 [rows]
  ConstTensor d_y;          // [rows, cols]
  ConstTensor d_sum = {};   // [rows, cols]; absent: zero
  Tensor d_x;               // [rows, cols]
  Tensor d_weight = {};     // f32 [cols], added to; absent: not wanted
};

// y = (sum - mean) · rsqrt(variance + epsilon) · weight + bias, sum = x + delta. Two-pass (biased)
// variance.
struct LayerNormForward {
  ConstTensor x;           // [rows, cols]
  ConstTensor delta = {};  // [rows, cols]
  ConstTensor weight;      // [cols]
  ConstTensor bias;        // [cols]
  Tensor sum = {};         // [rows, cols] present exactly when delta is
  Tensor y;                // [rows, cols]
  Tensor mean;             // f32 [rows]
  Tensor inverse_std;      // f32 [rows]
  float epsilon = 1e-5f;
};

struct LayerNormBackward {
  ConstTensor x;       // [rows, cols] the normalised input (forward's sum, where there was a delta)
  ConstTensor weight;  // [cols]
  ConstTensor mean;    // f32 [rows]
  ConstTensor inverse_std;  // f32 [rows]
  ConstTensor d_y;          // [rows, cols]
  ConstTensor d_sum = {};   // [rows, cols]; absent: zero
  Tensor d_x;               // [rows, cols]
  Tensor d_weight = {};     // f32 [cols], added to; absent: not wanted, with d_bias
  Tensor d_bias = {};       // f32 [cols], added to
};

// Per head: RMSNorm over head_dim with a learned scale shared by the heads, then rotary embedding
// (Su et al. 2021, eq. 34) in half-split pairing: element i turns with element i + head_dim/2 by
// angle position·θ^(-2i/d). `rotation` holds cos in its first half and sin in its second: f32
// [positions, head_dim], see rotation_table. A position outside the table is an error on the CPU; on a
// GPU it makes the head's results NaN.
struct QkNormRopeForward {
  ConstTensor x;          // [tokens, heads, head_dim]
  ConstTensor weight;     // [head_dim]
  ConstTensor rotation;   // f32 [max_positions, head_dim]
  ConstTensor positions;  // i32 [tokens]
  Tensor y;               // [tokens, heads, head_dim]
  Tensor inverse_rms;     // f32 [tokens, heads]
  float epsilon = 1e-5f;
};

struct QkNormRopeBackward {
  ConstTensor x;            // [tokens, heads, head_dim] forward's input
  ConstTensor weight;       // [head_dim]
  ConstTensor rotation;     // f32 [max_positions, head_dim]
  ConstTensor positions;    // i32 [tokens]
  ConstTensor inverse_rms;  // f32 [tokens, heads]
  ConstTensor d_y;          // [tokens, heads, head_dim]
  Tensor d_x;               // [tokens, heads, head_dim]
  Tensor d_weight = {};     // f32 [head_dim], added to; absent: not wanted
};

void run(Stream&, const RmsNormForward&);
void run(Stream&, const RmsNormBackward&);
void run(Stream&, const LayerNormForward&);
void run(Stream&, const LayerNormBackward&);
void run(Stream&, const QkNormRopeForward&);
void run(Stream&, const QkNormRopeBackward&);

// Fills host memory [positions, head_dim]: cos | sin of position·theta^(-2i/head_dim), angles in
// double.
void rotation_table(float* table, std::int64_t positions, std::int64_t head_dim, double theta);

}  // namespace orchard
