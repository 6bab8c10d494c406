// Scaled dot-product attention over packed documents, blockwise with an online softmax (Dao et al.
// 2022, algorithm 1), so that no score matrix exists in memory. Grouped queries: query head h reads
// key head h / (heads / kv_heads). Nothing crosses a document.
//
// f32 or bf16 storage, fp32 softmax and accumulation. For documents of n tokens: forward
// 4·n²·head_dim·heads FLOPs (half of that when causal), backward 10·n²; bytes
// 4·tokens·heads·head_dim elements; bound by compute.
//
// On a GPU bf16 runs on the tensor cores where head_dim is a multiple of 8 up to 128 and the tensors
// are aligned to 16 bytes, everything else in plain fp32. Documents are found on the device: the host
// reads no offsets, and does not check them there. ORCHARD_GPU_ATTENTION limits the choice of kernels:
// auto (the default), or the last of fma, sm80 and sm90 that may be taken.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

enum class Mask : std::uint8_t { full, causal };

// Document d owns query rows [query_offsets[d], query_offsets[d+1]) and the key rows of key_offsets
// likewise. With unequal lengths (a cache of earlier keys) the ends are aligned: the last query
// sees the last key. A query that sees no key yields zeros. Every length >= 0 and every head_dim <=
// 256 is legal.
struct AttentionForward {
  ConstTensor q;                 // [query_tokens, heads, head_dim]
  ConstTensor k, v;              // [key_tokens, kv_heads, head_dim]
  ConstTensor query_offsets;     // i32 [documents + 1]
  ConstTensor key_offsets = {};  // i32 [documents + 1]; absent: query_offsets
  Mask mask = Mask::causal;
  float scale = 0;     // above 0, usually head_dim^-0.5
  Tensor out;          // [query_tokens, heads, head_dim]
  Tensor log_sum_exp;  // f32 [query_tokens, heads], of the scaled scores; -inf where no key is seen
};

// Deterministic: each gradient is summed in one fixed order.
struct AttentionBackward {
  ConstTensor q, k, v;
  ConstTensor out, log_sum_exp;  // forward's results
  ConstTensor d_out;             // [query_tokens, heads, head_dim]
  ConstTensor query_offsets;
  ConstTensor key_offsets = {};
  Mask mask = Mask::causal;
  float scale = 0;
  Tensor d_q, d_k, d_v;  // shapes of q, k, v; rows outside every document become zero
};

void run(Stream&, const AttentionForward&);
void run(Stream&, const AttentionBackward&);

}  // namespace orchard
