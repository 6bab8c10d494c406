// One bottleneck of the C-Abstractor (Honeybee's RegNet block with timm 0.9.8's LayerNorm2d +
// SiLU), channels last:
//   a = silu(norm1(conv1·x));  b = silu(norm2(depthwise3x3(a)));  c = squeeze-excite(b);  y =
//   norm3(conv3·c) out = silu(y + shortcut),  shortcut = x, or norm(conv·x) where the width changes
#pragma once

#include <optional>

#include "models/linear.h"
#include "models/norms.h"

namespace orchard {

// Pixels of a batch of pictures as rows: row = (image · height + i) · width + j.
struct PixelGrid {
  std::int64_t images = 0, height = 0, width = 0;
  std::int64_t rows() const { return images * height * width; }
  Shape with(std::int64_t channels) const { return {images, height, width, channels}; }
};

class Bottleneck {
 public:
  // Declares name.{conv1, norm1, conv2, norm2, se_reduce, se_reduce_bias, se_expand,
  // se_expand_bias, conv3, norm3} and, where in != out, name.{shortcut, shortcut_norm}. The
  // excitation is round(in / 4) wide.
  Bottleneck(ParameterStore& store, const std::string& name, std::int64_t in, std::int64_t out);

  struct Saved {
    PixelGrid grid;
    Linear::Saved conv1, conv3, se_reduce, se_expand, shortcut;
    LayerNorm::Saved norm1, norm2, norm3, shortcut_norm;
    ConstTensor normed1, active1;      // before and after the first SiLU
    ConstTensor normed2, active2;      // likewise the second
    ConstTensor squeezed, excitation;  // [images, R] before SiLU, [images, out] before the sigmoid
    ConstTensor before_last;           // y + shortcut
    ConstTensor d_depthwise;           // for the weight half
  };

  Tensor forward(Pass& pass, ConstTensor x, const PixelGrid& grid, Saved& saved) const;
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  std::int64_t out_;
  Linear conv1_;
  LayerNorm norm1_;
  Parameter* conv2_;
  LayerNorm norm2_;
  Linear se_reduce_, se_expand_;
  Linear conv3_;
  LayerNorm norm3_;
  std::optional<Linear> shortcut_;
  std::optional<LayerNorm> shortcut_norm_;
};

}  // namespace orchard
