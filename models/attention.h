// The attention layer of both towers: grouped queries with QK-norm and RoPE in the decoder, plain
// multi-head with biases in the vision transformer.
#pragma once

#include <optional>

#include "kernels/attention/attention.h"
#include "models/config.h"
#include "models/linear.h"

namespace orchard {

struct AttentionConfig {
  std::string name;
  std::int64_t width = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  Mask mask = Mask::causal;    // causal inside documents (decoder), full inside tiles (vision)
  bool biases = false;         // on all four projections
  double residual_std = 0.02;  // of the output projection
  const ConstTensor* rotation =
      nullptr;  // f32 [max_positions, head_dim]; null: neither QK-norm nor RoPE

  static AttentionConfig of(const std::string& name, const DecoderConfig&,
                            const ConstTensor* rotation);
  static AttentionConfig of(const std::string& name, const VisionConfig&);
};

// Keys and values of earlier tokens, for generation: [max_tokens, kv_heads, head_dim], the first
// `length` filled.
struct KeyValueCache {
  Tensor keys, values;
  std::int64_t length = 0;
};

// Declares name.wq, .wk, .wv, .wo; with biases .bq, .bk, .bv, .bo; with a rotation .q_norm and
// .k_norm.
class Attention {
 public:
  Attention(ParameterStore& store, const AttentionConfig& config);

  struct Saved {
    ColumnLinears<3>::Saved qkv;
    RowLinear::Saved out_linear;
    ConstTensor q_raw, k_raw;  // [rows, heads, head_dim], [rows, kv_heads, head_dim] before QK-norm
    ConstTensor q_rms, k_rms;  // f32 [rows, heads], [rows, kv_heads]
    ConstTensor q, k, v;       // what attention reads
    ConstTensor out, log_sum_exp;  // [rows, heads, head_dim], f32 [rows, heads]
  };

  // x and y: [local rows, width] (see tensor_parallel.h); heads are this rank's, on all rows.
  Tensor forward(Pass& pass, ConstTensor x, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

  // Of this rank.
  std::int64_t kv_heads() const { return qkv_.out(1) / config_.head_dim; }

  // Forward for one document whose earlier tokens are in `cache`; appends x's keys and values to
  // it. pass.batch.positions hold x's positions; pass.batch.document_offsets are {0, rows of x},
  // and key_offsets, i32 [2], {0, cache.length + rows of x}.
  Tensor forward_cached(Pass& pass, ConstTensor x, KeyValueCache& cache,
                        ConstTensor key_offsets) const;

 private:
  void project(Pass& pass, ConstTensor x, Saved& saved) const;
  std::int64_t rows(const Pass& pass) const;
  ConstTensor offsets(const Pass& pass) const;
  float scale() const;

  AttentionConfig config_;
  ColumnLinears<3> qkv_;
  RowLinear wo_;
  Parameter* q_norm_ = nullptr;
  Parameter* k_norm_ = nullptr;
};

}  // namespace orchard
