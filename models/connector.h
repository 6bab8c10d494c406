// The C-Abstractor (Cha et al. 2023, Honeybee): positions, bottlenecks, adaptive pooling,
// bottlenecks, and a two-layer SiLU readout into the decoder's width. mm15.md §1.3 lists every
// step. Every tensor rank computes all of it: it is a small part of the model.
#pragma once

#include <deque>

#include "models/bottleneck.h"
#include "models/config.h"

namespace orchard {

class Connector {
 public:
  // Declares connector.positions [patches, vision width], connector.s1.<i>.*, connector.s2.<i>.*
  // and connector.readout.{w1, b1, w2, b2}.
  Connector(ParameterStore& store, const ModelConfig& config);

  struct Saved {
    std::int64_t tiles = 0;
    std::vector<Bottleneck::Saved> s1, s2;
    Linear::Saved readout1, readout2;
    ConstTensor hidden;  // [tiles · tokens, decoder hidden] before the readout's SiLU
  };

  // Every tensor rank computes all of it. x.sum: the vision tower's output, the local share of
  // [tiles · (patches + 1), vision width], class tokens included (see tensor_parallel.h). Returns
  // [tiles · tokens, decoder hidden].
  Residual forward(Pass& pass, const Residual& x, Saved& saved) const;
  // d_x: shape of x.sum, its class rows zero.
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  PixelGrid before_pool(std::int64_t tiles) const {
    return {tiles, config_.vision.grid(), config_.vision.grid()};
  }
  PixelGrid after_pool(std::int64_t tiles) const {
    return {tiles, config_.connector.out_side, config_.connector.out_side};
  }

  ModelConfig config_;
  Parameter* positions_;
  std::deque<Bottleneck> s1_, s2_;
  Linear readout1_, readout2_;
};

}  // namespace orchard
