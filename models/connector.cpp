#include "models/connector.h"

#include "kernels/activation/activation.h"
#include "kernels/convolution/convolution.h"
#include "kernels/embedding/embedding.h"
#include "models/tensor_parallel.h"

namespace orchard {

Connector::Connector(ParameterStore& store, const ModelConfig& config)
    : config_(config),
      positions_(&store.declare({.name = "connector.positions",
                                 .shape = {config.vision.patches(), config.vision.width},
                                 .initializer = Initializer::truncated_normal})),
      readout1_([&]() -> Linear {
        const std::int64_t hidden = config.connector.hidden;
        for (std::int64_t i = 0; i < config.connector.depth; ++i) {
          s1_.emplace_back(store, fmt::format("connector.s1.{}", i),
                           i ? hidden : config.vision.width, hidden);
        }
        for (std::int64_t i = 0; i < config.connector.depth; ++i) {
          s2_.emplace_back(store, fmt::format("connector.s2.{}", i), hidden, hidden);
        }
        return {store,
                {.name = "connector.readout.w1",
                 .in = hidden,
                 .out = config.decoder.hidden,
                 .bias = "connector.readout.b1"}};
      }()),
      readout2_(store, {.name = "connector.readout.w2",
                        .in = config.decoder.hidden,
                        .out = config.decoder.hidden,
                        .bias = "connector.readout.b2"}) {}

Residual Connector::forward(Pass& pass, const Residual& stream, Saved& saved) const {
  const ConstTensor x = gather_rows(pass, stream.sum, pass.batch.tower_rows);
  const std::int64_t patches = config_.vision.patches(), width = config_.vision.width;
  const std::int64_t hidden = config_.connector.hidden;
  saved.tiles = pass.batch.tiles;
  const Tensor features = pass.allocate(x.dtype(), {saved.tiles, patches, width});
  run(pass.stream, DropClassForward{.x = x.reshape({saved.tiles, patches + 1, width}),
                                    .positions = positions_->value,
                                    .y = features});

  Tensor y = features.reshape({saved.tiles * patches, width});
  saved.s1.assign(s1_.size(), {});
  for (std::size_t i = 0; i < s1_.size(); ++i)
    y = s1_[i].forward(pass, y, before_pool(saved.tiles), saved.s1[i]);

  const PixelGrid fine = before_pool(saved.tiles), coarse = after_pool(saved.tiles);
  const Tensor pooled = pass.allocate(y.dtype(), {coarse.rows(), hidden});
  run(pass.stream, AdaptiveAveragePoolForward{.x = y.reshape(fine.with(hidden)),
                                              .y = pooled.reshape(coarse.with(hidden))});

  y = pooled;
  saved.s2.assign(s2_.size(), {});
  for (std::size_t i = 0; i < s2_.size(); ++i) y = s2_[i].forward(pass, y, coarse, saved.s2[i]);

  saved.hidden = readout1_.forward(pass, y, saved.readout1);
  const Tensor active = pass.allocate_like(saved.hidden);
  run(pass.stream, ActivationForward{.kind = Activation::silu, .x = saved.hidden, .y = active});
  return {readout2_.forward(pass, active, saved.readout2), {}};
}

void Connector::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const std::int64_t patches = config_.vision.patches(), width = config_.vision.width;
  const std::int64_t hidden = config_.connector.hidden;
  const PixelGrid fine = before_pool(saved.tiles), coarse = after_pool(saved.tiles);

  const Tensor d_hidden = pass.allocate_like(saved.hidden);
  readout2_.backward_input(pass, d_y, saved.readout2, d_hidden);
  run(pass.stream,
      ActivationBackward{
          .kind = Activation::silu, .x = saved.hidden, .d_y = d_hidden, .d_x = d_hidden});
  Tensor d = pass.allocate(d_y.dtype(), {coarse.rows(), hidden});
  readout1_.backward_input(pass, d_hidden, saved.readout1, d);

  const auto backward_chain = [&](const std::deque<Bottleneck>& chain,
                                  std::vector<Bottleneck::Saved>& states,
                                  std::int64_t first_width) {
    for (std::size_t i = chain.size(); i-- > 0;) {
      const Tensor d_in = pass.allocate(d.dtype(), {d.dim(0), i ? hidden : first_width});
      chain[i].backward_input(pass, d, states[i], d_in);
      d = d_in;
    }
  };
  backward_chain(s2_, saved.s2, hidden);
  const Tensor d_fine = pass.allocate(d.dtype(), {fine.rows(), hidden});
  run(pass.stream, AdaptiveAveragePoolBackward{.d_y = d.reshape(coarse.with(hidden)),
                                               .d_x = d_fine.reshape(fine.with(hidden))});
  d = d_fine;
  backward_chain(s1_, saved.s1, width);
  const bool cut = d_x.dim(0) != pass.batch.tower_rows;
  const Tensor d_all = cut ? pass.allocate(d_x.dtype(), {pass.batch.tower_rows, width}) : d_x;
  run(pass.stream, DropClassBackward{.d_y = d.reshape({saved.tiles, patches, width}),
                                     .d_x = d_all.reshape({saved.tiles, patches + 1, width}),
                                     .d_positions = positions_->gradient});
  if (cut) pass.stream.copy(d_x, share_of_rows(pass, d_all));
}

void Connector::backward_weight(Pass& pass, Saved& saved) const {
  readout2_.backward_weight(pass, saved.readout2);
  readout1_.backward_weight(pass, saved.readout1);
  for (std::size_t i = s2_.size(); i-- > 0;) s2_[i].backward_weight(pass, saved.s2[i]);
  for (std::size_t i = s1_.size(); i-- > 0;) s1_[i].backward_weight(pass, saved.s1[i]);
}

}  // namespace orchard
