// What the files of the GPU's attention share.
#pragma once

#include <limits>

#include "kernels/attention/attention.h"
#include "kernels/attention/document_tile.h"
#include "kernels/device/stream.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float log2_e = 1.44269504088896341f;
inline constexpr float ln_2 = 0.693147180559945309f;

// Attention as the kernels see it. Row r of head h of q, out and their gradients begins at element
// (r·heads + h)·head_dim, of k and v at (r·kv_heads + h)·head_dim.
struct Problem {
  Packing packing;
  Mask mask;
  int heads, kv_heads, head_dim;
  float scale;
};

template <class Operation>
Problem problem_of(const char* name, const Operation& op) {
  const ConstTensor& key_offsets = op.key_offsets ? op.key_offsets : op.query_offsets;
  // Half of what an int holds: a tile may begin a little past the last row.
  for (const std::int64_t tokens : {op.q.dim(0), op.k.dim(0)}) {
    require(tokens < (std::int64_t{1} << 30),
            "{}: {} rows are more than the GPU kernel counts (2^30)", name, tokens);
  }
  return {.packing = {.query_offsets = op.query_offsets.template data<std::int32_t>(),
                      .key_offsets = key_offsets.data<std::int32_t>(),
                      .documents = static_cast<int>(op.query_offsets.dim(0)) - 1,
                      .query_tokens = static_cast<int>(op.q.dim(0)),
                      .key_tokens = static_cast<int>(op.k.dim(0))},
          .mask = op.mask,
          .heads = static_cast<int>(op.q.dim(1)),
          .kv_heads = static_cast<int>(op.k.dim(1)),
          .head_dim = static_cast<int>(op.q.dim(2)),
          .scale = op.scale};
}

// A grid of one block for every head of every slot. Neighbours in time are the heads of one tile:
// those of one kv head share its keys and values in the L2 cache.
inline Extent3 grid_of(const char* name, std::int64_t slots, int heads) {
  const std::int64_t blocks = slots * heads;
  require(blocks < (std::int64_t{1} << 31), "{}: {} tiles of {} heads exceed a grid (2^31 blocks)",
          name, slots, heads);
  return {static_cast<unsigned>(blocks)};
}

// The rows of one head of a tensor [tokens, heads, head_dim].
template <class T>
struct HeadRows {
  __device__ HeadRows(T* tensor, int head, int heads, int dim)
      : data(tensor + head * dim), stride(heads * dim), head_dim(dim) {}

  T* data;     // of token 0
  int stride;  // elements
  int head_dim;
};

// With plain multiply-adds: f32 and bf16, any head_dim.
void attention_forward_fma(Stream&, const AttentionForward&);
void attention_backward_fma(Stream&, const AttentionBackward&);

// On tensor cores: bf16, head_dim a multiple of 8 up to 128, tensors aligned to 16 bytes.
void attention_forward_mma(Stream&, const AttentionForward&);
void attention_backward_mma(Stream&, const AttentionBackward&);

// The same on sm_90a's own instructions, for a head_dim of 64 or 128.
void attention_forward_wgmma(Stream&, const AttentionForward&);
void attention_backward_wgmma(Stream&, const AttentionBackward&);

}  // namespace orchard::GPU_NAMESPACE
