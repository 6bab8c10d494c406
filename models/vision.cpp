#include "models/vision.h"

#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "models/tensor_parallel.h"

namespace orchard {

VisionStem::VisionStem(ParameterStore& store, const VisionConfig& config)
    : config_(config),
      patch_embedding_(
          store,
          {.name = "vision.patch_embedding", .in = config.patch_values(), .out = config.width}),
      class_token_(&store.declare({.name = "vision.class_token", .shape = {config.width}})),
      positions_(&store.declare({.name = "vision.positions",
                                 .shape = {config.patches() + 1, config.width},
                                 .initializer = Initializer::truncated_normal})),
      ln_pre_(store, "vision.ln_pre", config.width) {}

Residual VisionStem::forward(Pass& pass, const Residual&, Saved& saved) const {
  const ConstTensor patches = pass.batch.patches;
  const std::int64_t tiles = patches.dim(0), count = config_.patches(), width = config_.width;
  const Tensor embedded = patch_embedding_.forward(
      pass, patches.reshape({tiles * count, config_.patch_values()}), saved.patch_linear);
  const Tensor tokens = pass.allocate(patches.dtype(), {tiles, count + 1, width});
  run(pass.stream, PrependClassForward{.patches = embedded.reshape({tiles, count, width}),
                                       .class_token = class_token_->value,
                                       .positions = positions_->value,
                                       .y = tokens});
  const ConstTensor own = share_of_rows(pass, tokens.reshape({pass.batch.tower_rows, width}));
  return {ln_pre_.forward(pass, {own, {}}, saved.ln_pre), {}};
}

void VisionStem::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor) const {
  const std::int64_t count = config_.patches(), width = config_.width;
  const std::int64_t tiles = pass.batch.tiles;
  const Tensor d_own = pass.allocate_like(d_y);
  ln_pre_.backward(pass, d_y, {}, saved.ln_pre, d_own);
  const ConstTensor d_tokens = gather_rows(pass, d_own, pass.batch.tower_rows);
  const Tensor d_patches = pass.allocate(d_y.dtype(), {tiles, count, width});
  run(pass.stream, PrependClassBackward{.d_y = d_tokens.reshape({tiles, count + 1, width}),
                                        .d_patches = d_patches,
                                        .d_class_token = class_token_->gradient,
                                        .d_positions = positions_->gradient});
  saved.patch_linear.d_y = d_patches.reshape({tiles * count, width});
}

void VisionStem::backward_weight(Pass& pass, Saved& saved) const {
  patch_embedding_.backward_weight(pass, saved.patch_linear);
}

VisionOutput::VisionOutput(ParameterStore& store, const VisionConfig& config)
    : features_(config.features), ln_post_(store, "vision.ln_post", config.width) {}

Residual VisionOutput::forward(Pass& pass, const Residual& x, Saved& saved) const {
  if (features_ == FeatureLayer::post_norm) return {ln_post_.forward(pass, x, saved), {}};
  if (!x.delta) return x;
  const Tensor y = pass.allocate_like(x.sum);
  run(pass.stream, Add{.a = x.sum, .b = x.delta, .y = y});
  return {y, {}};
}

void VisionOutput::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  if (features_ == FeatureLayer::post_norm) {
    ln_post_.backward(pass, d_y, {}, saved, d_x);
  } else {
    pass.stream.copy(d_x, d_y);
  }
}

VisionTransformer::VisionTransformer(ParameterStore& store, const VisionConfig& config,
                                     Recompute recompute)
    : config_(config), stem_(store, config), output_([&]() -> VisionOutput {
        for (std::int64_t l = 0; l < config.layers; ++l) {
          const std::string name = fmt::format("vision.layers.{}", l);
          // A last block that does not run goes with the output.
          if (l <= config.active_layers()) store.next_link();
          blocks_.emplace_back(store, name, AttentionConfig::of(name + ".attention", config),
                               config, recompute);
        }
        if (config.active_layers() == config.layers) store.next_link();
        return {store, config};
      }()) {}

void VisionTransformer::append_to(Chain& chain) const {
  const ChainShape tower{.kind = ChainRows::tower, .width = config_.width};
  chain.add(stem_, tower);
  for (std::int64_t l = 0; l < config_.active_layers(); ++l)
    chain.add(blocks_[static_cast<std::size_t>(l)], tower);
  chain.add(output_, tower);
}

}  // namespace orchard
