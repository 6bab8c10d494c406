#include "models/decoder.h"

#include "kernels/norm/norm.h"

namespace orchard {
namespace {

using SparseLink = LayerLink<Decoder::SparseBlock>;

bool is_sparse(const ChainLink& link) {
  return dynamic_cast<const SparseLink*>(&link) != nullptr;
}

}  // namespace

Decoder::Decoder(ParameterStore& store, const DecoderConfig& config, Recompute recompute)
    : config_(config), final_norm_([&]() -> FinalNorm {
        for (std::int64_t l = 0; l < config.layers; ++l) {
          store.next_link();
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
        store.next_link();
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

void Decoder::append_to(Chain& chain) const {
  const ChainShape tokens{.kind = ChainRows::tokens, .width = config_.hidden};
  for (const auto& block : blocks_) std::visit([&](const auto& b) { chain.add(b, tokens); }, block);
  chain.add(final_norm_, tokens);
}

std::vector<RouterStatistics> Decoder::router_statistics(const Chain& chain,
                                                         const Chain::Saved& saved) {
  std::vector<RouterStatistics> statistics;
  for (int i = saved.range.first; i < saved.range.last; ++i) {
    if (is_sparse(chain.link(i)))
      statistics.push_back(SparseLink::state(saved.link(i)).feed_forward.statistics);
  }
  return statistics;
}

std::size_t Decoder::sparse_layers(const Chain& chain, LinkRange range) {
  std::size_t count = 0;
  for (int i = range.first; i < range.last; ++i) count += is_sparse(chain.link(i));
  return count;
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

ConstTensor Decoder::forward_cached(Pass& pass, ConstTensor x, std::vector<KeyValueCache>& caches,
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
  FinalNorm::Saved saved;
  return final_norm_.forward(pass, stream, saved).sum;
}

}  // namespace orchard
