#include "models/decoder.h"

#include "kernels/norm/norm.h"

namespace orchard {
namespace {

template <class... Bodies>
struct Overloaded : Bodies... {
  using Bodies::operator()...;
};

}  // namespace

Decoder::Decoder(ParameterStore& store, const DecoderConfig& config, Recompute recompute)
    : config_(config), final_norm_([&]() -> RmsNorm {
        for (std::int64_t l = 0; l < config.layers; ++l) {
          const std::string name = fmt::format("decoder.layers.{}", l);
          const auto attention = AttentionConfig::of(name + ".attention", config_, &rotation_);
          if (config.is_sparse(l)) {
            blocks_.emplace_back(std::in_place_type<SparseBlock>, store, name, attention, config_,
                                 recompute);
          } else {
            blocks_.emplace_back(std::in_place_type<DenseBlock>, store, name, attention, config_,
                                 recompute);
          }
        }
        return {store, "decoder.final_norm", config.hidden};
      }()) {}

void Decoder::prepare(Device& device, Stream& stream) {
  const Shape shape{config_.max_positions, config_.head_dim};
  std::vector<float> table(static_cast<std::size_t>(shape.numel()));
  rotation_table(table.data(), shape[0], shape[1], config_.rope_theta);
  rotation_memory_ = device.allocate(table.size() * sizeof(float));
  const Tensor rotation = rotation_memory_.tensor(DType::f32, shape);
  stream.copy(rotation, ConstTensor(table.data(), DType::f32, shape, DeviceKind::cpu));
  stream.synchronize();
  rotation_ = rotation;
}

Tensor Decoder::forward(Pass& pass, ConstTensor x, Saved& saved) const {
  saved.d_stream[0] = pass.allocate_like(x);
  saved.d_stream[1] = pass.allocate_like(x);
  saved.blocks.clear();
  saved.marks.clear();
  Residual stream{x, {}};
  for (const auto& block : blocks_) {
    saved.marks.push_back(pass.arena.mark());
    stream = std::visit(Overloaded{[&](const DenseBlock& b) {
                                     auto& s = saved.blocks.emplace_back(DenseBlock::Saved{});
                                     return b.forward(pass, stream, std::get<DenseBlock::Saved>(s));
                                   },
                                   [&](const SparseBlock& b) {
                                     auto& s = std::get<SparseBlock::Saved>(
                                         saved.blocks.emplace_back(SparseBlock::Saved{}));
                                     // Before the block, so that the step's report survives
                                     // recomputation.
                                     s.feed_forward.statistics =
                                         b.feed_forward().allocate_statistics(pass);
                                     return b.forward(pass, stream, s);
                                   }},
                        block);
  }
  return final_norm_.forward(pass, stream, saved.final_norm);
}

Tensor Decoder::backward(Pass& pass, ConstTensor d_y, Saved& saved) const {
  Tensor g = saved.d_stream[0];
  Tensor d_x = saved.d_stream[1];
  final_norm_.backward(pass, d_y, {}, saved.final_norm, g);
  for (std::size_t l = blocks_.size(); l-- > 0;) {
    std::visit(
        [&]<class Block>(const Block& block) {
          auto& s = std::get<typename Block::Saved>(saved.blocks[l]);
          block.backward_input(pass, g, s, d_x);
          block.backward_weight(pass, s);
          pass.gradients_final_from(block.first_declared());
        },
        blocks_[l]);
    pass.arena.rewind(saved.marks[l]);
    std::swap(g, d_x);
  }
  return g;
}

std::vector<RouterStatistics> Decoder::router_statistics(const Saved& saved) const {
  std::vector<RouterStatistics> statistics;
  for (const auto& block : saved.blocks) {
    if (const auto* sparse = std::get_if<SparseBlock::Saved>(&block))
      statistics.push_back(sparse->feed_forward.statistics);
  }
  return statistics;
}

std::vector<const Parameter*> Decoder::routers() const {
  std::vector<const Parameter*> routers;
  for (const auto& block : blocks_) {
    if (const auto* sparse = std::get_if<SparseBlock>(&block))
      routers.push_back(sparse->feed_forward().router());
  }
  return routers;
}

std::vector<KeyValueCache> Decoder::make_caches(Arena& arena, DType dtype,
                                                std::int64_t max_tokens) const {
  std::vector<KeyValueCache> caches;
  for (const auto& block : blocks_) {
    const std::int64_t heads =
        std::visit([](const auto& b) { return b.attention().kv_heads(); }, block);
    const Shape shape{max_tokens, heads, config_.head_dim};
    caches.push_back(
        {.keys = arena.allocate(dtype, shape), .values = arena.allocate(dtype, shape)});
  }
  return caches;
}

Tensor Decoder::forward_cached(Pass& pass, ConstTensor x, std::vector<KeyValueCache>& caches,
                               ConstTensor key_offsets) const {
  Residual stream{x, {}};
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    stream = std::visit(
        [&]<class Block>(const Block& block) -> Residual {
          typename Block::Saved s;
          const Tensor normed = block.attention_norm().forward(pass, stream, s.attention_norm);
          const Tensor attended =
              block.attention().forward_cached(pass, normed, caches[l], key_offsets);
          const Tensor normed_again = block.feed_forward_norm().forward(
              pass, {s.attention_norm.sum, attended}, s.feed_forward_norm);
          const Tensor delta = block.feed_forward().forward(pass, normed_again, s.feed_forward);
          return {s.feed_forward_norm.sum, delta};
        },
        blocks_[l]);
  }
  RmsNorm::Saved saved;
  return final_norm_.forward(pass, stream, saved);
}

}  // namespace orchard
