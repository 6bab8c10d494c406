// The picture path beside its matrix products: resize and patchify, the class token, and the
// connector's convolution, squeeze-excitation and pooling. See operands.h for what is counted.
#include "bench/operands.h"
#include "kernels/activation/activation.h"
#include "kernels/convolution/convolution.h"
#include "kernels/embedding/embedding.h"
#include "kernels/image/image.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32;

// Shapes are [images, side, side, channels].
const std::vector<std::pair<const char*, Body>> of_maps = {
    {"DepthwiseConv3x3Forward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state,
                 DepthwiseConv3x3Forward{
                     .x = t.once(e, s), .weight = t.once(e, {s[3], 3, 3}), .y = t.once(e, s)});
     }},
    {"DepthwiseConv3x3BackwardInput",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state,
                 DepthwiseConv3x3BackwardInput{
                     .d_y = t.once(e, s), .weight = t.once(e, {s[3], 3, 3}), .d_x = t.once(e, s)});
     }},
    {"DepthwiseConv3x3BackwardWeight",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, DepthwiseConv3x3BackwardWeight{.x = t.once(e, s),
                                                       .d_y = t.once(e, s),
                                                       .d_weight = t.in_place(f32, {s[3], 3, 3})});
     }},
    {"AdaptiveAveragePoolForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, AdaptiveAveragePoolForward{.x = t.once(e, s),
                                                   .y = t.once(e, {s[0], 12, 12, s[3]})});
     }},
    {"AdaptiveAveragePoolBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, AdaptiveAveragePoolBackward{.d_y = t.once(e, {s[0], 12, 12, s[3]}),
                                                    .d_x = t.once(e, s)});
     }},
    {"GlobalMeanForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state,
                 AdaptiveAveragePoolForward{.x = t.once(e, s), .y = t.once(e, {s[0], 1, 1, s[3]})});
     }},
    {"ExciteForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape images = {s[0], s[1] * s[2], s[3]};
       t.measure(state, ExciteForward{.x = t.once(e, images),
                                      .scale = t.once(e, {s[0], s[3]}),
                                      .y = t.once(e, images)});
     }},
    {"ExciteBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape images = {s[0], s[1] * s[2], s[3]};
       t.measure(state, ExciteBackward{.x = t.once(e, images),
                                       .scale = t.once(e, {s[0], s[3]}),
                                       .d_y = t.once(e, images),
                                       .d_x = t.once(e, images),
                                       .d_scale = t.once(e, {s[0], s[3]})});
     }},
    {"PrependClassForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const std::int64_t patches = s[1] * s[2];
       t.measure(state, PrependClassForward{.patches = t.once(e, {s[0], patches, s[3]}),
                                            .class_token = t.once(e, {s[3]}),
                                            .positions = t.once(e, {patches + 1, s[3]}),
                                            .y = t.once(e, {s[0], patches + 1, s[3]})});
     }},
    {"PrependClassBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const std::int64_t patches = s[1] * s[2];
       t.measure(state, PrependClassBackward{.d_y = t.once(e, {s[0], patches + 1, s[3]}),
                                             .d_patches = t.once(e, {s[0], patches, s[3]}),
                                             .d_class_token = t.in_place(f32, {s[3]}),
                                             .d_positions = t.in_place(f32, {patches + 1, s[3]})});
     }},
    {"DropClassForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const std::int64_t patches = s[1] * s[2];
       t.measure(state, DropClassForward{.x = t.once(e, {s[0], patches + 1, s[3]}),
                                         .positions = t.once(e, {patches, s[3]}),
                                         .y = t.once(e, {s[0], patches, s[3]})});
     }},
    {"DropClassBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const std::int64_t patches = s[1] * s[2];
       t.measure(state, DropClassBackward{.d_y = t.once(e, {s[0], patches, s[3]}),
                                          .d_x = t.once(e, {s[0], patches + 1, s[3]}),
                                          .d_positions = t.in_place(f32, {patches, s[3]})});
     }},
};

// A photograph of 900 x 1200 to shape [height, width]: about 20 multiply-adds a value.
void resize(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, ResizeBicubic{.x = t.once(DType::u8, {900, 1200, 3}),
                                 .height = s[0],
                                 .width = s[1],
                                 .y = t.once(f32, {s[0], s[1], 3})});
}

// Shape [side of the canvas, side of a tile].
void patchify(benchmark::State& state, Operands& t, DType e, Shape s) {
  const std::int64_t side = s[1], tiles = s[0] / side * (s[0] / side), grid = side / 14;
  t.measure(state, NormalisePatchify{.x = t.once(f32, {s[0], s[0], 3}),
                                     .height = s[0],
                                     .width = s[0],
                                     .side = side,
                                     .patches = t.once(e, {tiles, grid * grid, 3 * 14 * 14})});
}

const bool registered = [] {
  for (const auto& [name, body] : of_maps) {
    add_benchmark_of_both(name, body, {16, 24, 24, 512});
    add_benchmark_of_both(name, body, {8, 27, 27, 1408});
  }
  add_benchmark("ResizeBicubic", resize, f32, {336, 448});
  add_benchmark("ResizeBicubic", resize, f32, {1344, 1792});
  add_benchmark_of_both("NormalisePatchify", patchify, {336, 336});
  add_benchmark_of_both("NormalisePatchify", patchify, {1344, 672});
  return true;
}();

}  // namespace
}  // namespace orchard::bench
