#include "models/attention.h"

#include <cmath>

#include "kernels/norm/norm.h"

namespace orchard {
namespace {

ConstTensor split_heads(ConstTensor x, std::int64_t head_dim) {
  return x.reshape({x.dim(0), x.dim(1) / head_dim, head_dim});
}
Tensor merge_heads(const Tensor& x) {
  return x.reshape({x.dim(0), x.dim(1) * x.dim(2)});
}

LinearConfig projection(const AttentionConfig& config, char which) {
  const bool output = which == 'o';
  const bool of_keys = which == 'k' || which == 'v';
  const std::int64_t inner = (of_keys ? config.kv_heads : config.heads) * config.head_dim;
  LinearConfig linear{.name = config.name + ".w" + which,
                      .in = output ? inner : config.width,
                      .out = output ? config.width : inner,
                      .std = output ? config.residual_std : 0.02,
                      .bias = config.biases ? config.name + ".b" + which : ""};
  // Ranks that share a key-value head serve different query heads with it.
  if (of_keys) linear.sharding = {.parts = config.kv_heads, .gradient = GradientOf::local_heads};
  return linear;
}

}  // namespace

AttentionConfig AttentionConfig::of(const std::string& name, const DecoderConfig& d,
                                    const ConstTensor* rotation) {
  return {.name = name,
          .width = d.hidden,
          .heads = d.heads,
          .kv_heads = d.kv_heads,
          .head_dim = d.head_dim,
          .mask = Mask::causal,
          .residual_std = 0.02 / std::sqrt(2.0 * static_cast<double>(d.layers)),
          .rotation = rotation};
}

AttentionConfig AttentionConfig::of(const std::string& name, const VisionConfig& v) {
  return {.name = name,
          .width = v.width,
          .heads = v.heads,
          .kv_heads = v.heads,
          .head_dim = v.width / v.heads,
          .mask = Mask::full,
          .biases = true,
          .residual_std = 0.02 / std::sqrt(2.0 * static_cast<double>(v.layers))};
}

Attention::Attention(ParameterStore& store, const AttentionConfig& config)
    : config_(config),
      qkv_(store, {projection(config, 'q'), projection(config, 'k'), projection(config, 'v')}),
      wo_(store, projection(config, 'o')) {
  if (!config.rotation) return;
  const auto declare_scale = [&](const char* suffix) {
    return &store.declare({.name = config.name + suffix,
                           .shape = {config.head_dim},
                           .initializer = Initializer::ones,
                           .sharding = {.gradient = GradientOf::local_heads}});
  };
  q_norm_ = declare_scale(".q_norm");
  k_norm_ = declare_scale(".k_norm");
}

std::int64_t Attention::rows(const Pass& pass) const {
  return config_.mask == Mask::causal ? pass.batch.rows : pass.batch.tower_rows;
}

ConstTensor Attention::offsets(const Pass& pass) const {
  return config_.mask == Mask::causal ? pass.batch.document_offsets : pass.batch.tile_offsets;
}

float Attention::scale() const {
  return 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
}

void Attention::project(Pass& pass, ConstTensor x, Saved& saved) const {
  const auto [q, k, v] = qkv_.forward(pass, x, rows(pass), saved.qkv);
  saved.q = split_heads(q, config_.head_dim);
  saved.k = split_heads(k, config_.head_dim);
  saved.v = split_heads(v, config_.head_dim);
  if (!config_.rotation) return;
  const auto normalise_and_rotate = [&](ConstTensor& heads, ConstTensor& raw, ConstTensor& rms,
                                        const Parameter& w) {
    raw = heads;
    const Tensor y = pass.allocate_like(raw);
    const Tensor inverse_rms = pass.allocate(DType::f32, {raw.dim(0), raw.dim(1)});
    run(pass.stream, QkNormRopeForward{.x = raw,
                                       .weight = w.value,
                                       .rotation = *config_.rotation,
                                       .positions = pass.batch.positions,
                                       .y = y,
                                       .inverse_rms = inverse_rms});
    heads = y;
    rms = inverse_rms;
  };
  normalise_and_rotate(saved.q, saved.q_raw, saved.q_rms, *q_norm_);
  normalise_and_rotate(saved.k, saved.k_raw, saved.k_rms, *k_norm_);
}

Tensor Attention::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  project(pass, x, saved);
  const Tensor out = pass.allocate_like(saved.q);
  const Tensor log_sum_exp = pass.allocate(DType::f32, {saved.q.dim(0), saved.q.dim(1)});
  run(pass.stream, AttentionForward{.q = saved.q,
                                    .k = saved.k,
                                    .v = saved.v,
                                    .query_offsets = offsets(pass),
                                    .mask = config_.mask,
                                    .scale = scale(),
                                    .out = out,
                                    .log_sum_exp = log_sum_exp});
  saved.out = out;
  saved.log_sum_exp = log_sum_exp;
  return wo_.forward(pass, merge_heads(out), saved.out_linear);
}

void Attention::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const Tensor d_out = pass.allocate_like(saved.out);
  wo_.backward_input(pass, d_y, saved.out_linear, merge_heads(d_out));
  const Tensor d_q = pass.allocate_like(saved.q);
  const Tensor d_k = pass.allocate_like(saved.k);
  const Tensor d_v = pass.allocate_like(saved.v);
  run(pass.stream, AttentionBackward{.q = saved.q,
                                     .k = saved.k,
                                     .v = saved.v,
                                     .out = saved.out,
                                     .log_sum_exp = saved.log_sum_exp,
                                     .d_out = d_out,
                                     .query_offsets = offsets(pass),
                                     .mask = config_.mask,
                                     .scale = scale(),
                                     .d_q = d_q,
                                     .d_k = d_k,
                                     .d_v = d_v});
  if (config_.rotation) {
    const auto through_norm = [&](const Tensor& d, ConstTensor raw, ConstTensor rms,
                                  const Parameter& weight) {
      run(pass.stream, QkNormRopeBackward{.x = raw,
                                          .weight = weight.value,
                                          .rotation = *config_.rotation,
                                          .positions = pass.batch.positions,
                                          .inverse_rms = rms,
                                          .d_y = d,
                                          .d_x = d,
                                          .d_weight = weight.gradient});
    };
    through_norm(d_q, saved.q_raw, saved.q_rms, *q_norm_);
    through_norm(d_k, saved.k_raw, saved.k_rms, *k_norm_);
  }
  qkv_.backward_input(pass, {merge_heads(d_q), merge_heads(d_k), merge_heads(d_v)}, saved.qkv, d_x);
}

void Attention::backward_weight(Pass& pass, Saved& saved) const {
  qkv_.backward_weight(pass, saved.qkv);
  wo_.backward_weight(pass, saved.out_linear);
}

Tensor Attention::forward_cached(Pass& pass, ConstTensor x, KeyValueCache& cache,
                                 ConstTensor key_offsets) const {
  Saved saved;
  project(pass, x, saved);
  const std::int64_t added = saved.q.dim(0), total = cache.length + added;
  require(total <= cache.keys.dim(0), "the key-value cache holds {} tokens; token {} does not fit",
          cache.keys.dim(0), total);
  pass.stream.copy(cache.keys.slice(cache.length, added), saved.k);
  pass.stream.copy(cache.values.slice(cache.length, added), saved.v);
  cache.length = total;
  const Tensor out = pass.allocate_like(saved.q);
  run(pass.stream,
      AttentionForward{.q = saved.q,
                       .k = cache.keys.slice(0, total),
                       .v = cache.values.slice(0, total),
                       .query_offsets = pass.batch.document_offsets,
                       .key_offsets = key_offsets,
                       .mask = config_.mask,
                       .scale = scale(),
                       .out = out,
                       .log_sum_exp = pass.allocate(DType::f32, {added, saved.q.dim(1)})});
  return wo_.forward(pass, merge_heads(out), saved.out_linear);
}

}  // namespace orchard
