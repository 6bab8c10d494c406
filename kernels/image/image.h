// Pictures to patches.
#pragma once

#include <array>

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

// Separable bicubic resize, a = -0.5, half-pixel centres, antialiased when shrinking (the support
// widens by the scale; Pillow's and torchvision's antialias), weights renormalised at the border.
// Horizontal pass first, no rounding between the passes. Result clamped to [0, 255]. Writes the
// leading [height, width] corner of a larger canvas.
struct ResizeBicubic {
  ConstTensor x;            // u8 [in_height, in_width, 3]
  std::int64_t height = 0;  // size of the resized picture
  std::int64_t width = 0;
  Tensor y;  // f32 [canvas_height, canvas_width, 3], canvas >= resized; the rest is untouched
};

inline constexpr std::int64_t max_patch = 512;

// Cuts the canvas into tiles, row-major, and each tile into flattened patches: (value/255 - mean) /
// std, in the order of a convolution weight [3, patch, patch]. Pixels at or beyond (height, width)
// are padding in the mean colour, so they become 0.
struct NormalisePatchify {
  ConstTensor x;            // f32 [tile_rows·side, tile_cols·side, 3], values 0 ... 255
  std::int64_t height = 0;  // extent of the picture inside the canvas
  std::int64_t width = 0;
  std::int64_t side = 0;    // pixels a side of a square tile, a multiple of patch
  std::int64_t patch = 14;  // at most max_patch
  std::array<float, 3> mean{0.48145466f, 0.4578275f, 0.40821073f};  // CLIP's
  std::array<float, 3> std{0.26862954f, 0.26130258f, 0.27577711f};
  Tensor patches;  // f32 or bf16 [tiles, (side/patch)², 3·patch²]
};

void run(Stream&, const ResizeBicubic&);
void run(Stream&, const NormalisePatchify&);

// Position tables for another grid (host memory, fp32 values, called when weights are loaded): 2-D
// bicubic a = -0.75, half-pixel centres, no antialias, align_corners off, edge clamped. [rows·cols,
// width] -> [new_rows·new_cols, width].
struct PositionResize {
  const float* table;
  int rows, cols;
  std::int64_t width;
  float* resized;
  int new_rows, new_cols;
};
void resize_positions(const PositionResize&);

}  // namespace orchard
