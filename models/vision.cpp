#include "models/vision.h"

#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"

namespace orchard {

VisionTransformer::VisionTransformer(ParameterStore& store, const VisionConfig& config,
                                     Recompute recompute)
    : config_(config),
      patch_embedding_(
          store,
          {.name = "vision.patch_embedding", .in = config.patch_values(), .out = config.width}),
      class_token_(&store.declare({.name = "vision.class_token", .shape = {config.width}})),
      positions_(&store.declare({.name = "vision.positions",
                                 .shape = {config.patches() + 1, config.width},
                                 .initializer = Initializer::truncated_normal})),
      ln_pre_(store, "vision.ln_pre", config.width),
      ln_post_([&]() -> LayerNorm {
        for (std::int64_t l = 0; l < config.layers; ++l) {
          const std::string name = fmt::format("vision.layers.{}", l);
          blocks_.emplace_back(store, name, AttentionConfig::of(name + ".attention", config),
                               config, recompute);
        }
        return {store, "vision.ln_post", config.width};
      }()) {}

std::size_t VisionTransformer::active_blocks() const {
  return blocks_.size() - (config_.features == FeatureLayer::penultimate ? 1 : 0);
}

ConstTensor VisionTransformer::forward(Pass& pass, ConstTensor patches, Saved& saved) const {
  const std::int64_t tiles = patches.dim(0), width = config_.width;
  const std::int64_t rows = pass.batch.tower_rows;
  const Shape local{local_rows(pass, rows), width};
  saved.d_stream[0] = pass.allocate(patches.dtype(), local);
  saved.d_stream[1] = pass.allocate(patches.dtype(), local);
  const Tensor embedded = patch_embedding_.forward(
      pass, patches.reshape({tiles * config_.patches(), config_.patch_values()}),
      saved.patch_linear);
  const Tensor tokens = pass.allocate(patches.dtype(), {tiles, config_.patches() + 1, width});
  run(pass.stream,
      PrependClassForward{.patches = embedded.reshape({tiles, config_.patches(), width}),
                          .class_token = class_token_->value,
                          .positions = positions_->value,
                          .y = tokens});
  const ConstTensor own = share_of_rows(pass, tokens.reshape({rows, width}));
  Residual stream{ln_pre_.forward(pass, {own, {}}, saved.ln_pre), {}};
  saved.blocks.assign(active_blocks(), {});
  saved.marks.clear();
  for (std::size_t l = 0; l < active_blocks(); ++l) {
    saved.marks.push_back(pass.arena.mark());
    stream = blocks_[l].forward(pass, stream, saved.blocks[l]);
  }
  if (config_.features == FeatureLayer::post_norm)
    return gather_rows(pass, ln_post_.forward(pass, stream, saved.ln_post), rows);
  const Tensor y = pass.allocate_like(stream.sum);
  run(pass.stream, Add{.a = stream.sum, .b = stream.delta, .y = y});
  return gather_rows(pass, y, rows);
}

void VisionTransformer::backward(Pass& pass, ConstTensor d_y, Saved& saved) const {
  Tensor g = saved.d_stream[0];
  Tensor d_x = saved.d_stream[1];
  if (config_.features == FeatureLayer::post_norm) {
    ln_post_.backward(pass, share_of_rows(pass, d_y), {}, saved.ln_post, g);
  } else {
    pass.stream.copy(g, share_of_rows(pass, d_y));
  }
  for (std::size_t l = active_blocks(); l-- > 0;) {
    blocks_[l].backward_input(pass, g, saved.blocks[l], d_x);
    blocks_[l].backward_weight(pass, saved.blocks[l]);
    pass.gradients_final_from(blocks_[l].first_declared());
    pass.arena.rewind(saved.marks[l]);
    std::swap(g, d_x);
  }
  ln_pre_.backward(pass, g, {}, saved.ln_pre, d_x);
  const std::int64_t patches = config_.patches(), width = config_.width;
  const std::int64_t tiles = pass.batch.tiles;
  const ConstTensor d_tokens = gather_rows(pass, d_x, pass.batch.tower_rows);
  const Tensor d_patches = pass.allocate(d_x.dtype(), {tiles, patches, width});
  run(pass.stream, PrependClassBackward{.d_y = d_tokens.reshape({tiles, patches + 1, width}),
                                        .d_patches = d_patches,
                                        .d_class_token = class_token_->gradient,
                                        .d_positions = positions_->gradient});
  saved.patch_linear.d_y = d_patches.reshape({tiles * patches, width});
  patch_embedding_.backward_weight(pass, saved.patch_linear);
}

}  // namespace orchard
