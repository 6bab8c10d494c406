// Pictures on their way to the decoder, at the shapes of the presets: resized and cut to patches, the
// tower's class tokens, and the connector's convolutions, poolings and excitations before and behind its
// pooling.
#include "bench/gpu/presets.h"
#include "bench/gpu/row_case.h"
#include "kernels/activation/activation.h"
#include "kernels/embedding/embedding.h"
#include "kernels/image/image.h"

namespace orchard::bench {
namespace {

constexpr DType f32 = DType::f32, bf16 = DType::bf16;

// [tiles, grid, grid, channels]
struct Grids {
  std::int64_t tiles = 0, grid = 0, channels = 0;

  std::int64_t pixels() const { return grid * grid; }
  double elements() const { return static_cast<double>(tiles * pixels() * channels); }
  Shape shape() const { return {tiles, grid, grid, channels}; }
};

// A photograph resized to fill `across` x `across` tiles, and the tiles cut to patches.
void add_images(std::vector<GpuCase>& cases, const VisionConfig& vision, const TileBatch& pictures,
                std::int64_t across) {
  const std::int64_t in_height = 900, in_width = 1200, side = across * pictures.side;
  const std::int64_t tiles = across * across, pixels = side * side;
  // Bytes of colour in, floats out; what the two passes leave between them does not count.
  cases.push_back(row_case(fmt::format("resize/{}x{}/to_{}x{}", in_height, in_width, side, side),
                           static_cast<double>(3 * in_height * in_width + 12 * pixels),
                           [=](GpuBench& bench) {
                             return ResizeBicubic{.x = bench.bytes({in_height, in_width, 3}),
                                                  .height = side,
                                                  .width = side,
                                                  .y = bench.zeros(f32, {side, side, 3})};
                           }));
  const Shape patches{tiles, pictures.grid * pictures.grid, vision.patch_values()};
  const std::int64_t tile_side = pictures.side, patch = vision.patch;
  cases.push_back(row_case(fmt::format("patchify/{}x{}x{}", tiles, tile_side, tile_side),
                           static_cast<double>((12 + 6) * pixels), [=](GpuBench& bench) {
                             return NormalisePatchify{.x = bench.random(f32, {side, side, 3}),
                                                      .height = side,
                                                      .width = side,
                                                      .side = tile_side,
                                                      .patch = patch,
                                                      .patches = bench.random(bf16, patches)};
                           }));
}

void add_class_tokens(std::vector<GpuCase>& cases, const Grids& g) {
  const std::int64_t patches = g.pixels(), width = g.channels;
  const Shape with = {g.tiles, patches + 1, width}, without = {g.tiles, patches, width};
  const double bytes = 4 * g.elements();
  const std::string shape = fmt::format("{}x{}x{}", g.tiles, patches, width);
  cases.push_back(row_case("prepend_class/forward/" + shape, bytes, [=](GpuBench& bench) {
    return PrependClassForward{.patches = bench.random(bf16, without),
                               .class_token = bench.random(bf16, {width}),
                               .positions = bench.random(bf16, {patches + 1, width}),
                               .y = bench.random(bf16, with)};
  }));
  cases.push_back(row_case("prepend_class/backward/" + shape, bytes, [=](GpuBench& bench) {
    return PrependClassBackward{.d_y = bench.random(bf16, with),
                                .d_patches = bench.random(bf16, without),
                                .d_class_token = bench.zeros(f32, {width}),
                                .d_positions = bench.zeros(f32, {patches + 1, width})};
  }));
  cases.push_back(row_case("drop_class/forward/" + shape, bytes, [=](GpuBench& bench) {
    return DropClassForward{.x = bench.random(bf16, with),
                            .positions = bench.random(bf16, {patches, width}),
                            .y = bench.random(bf16, without)};
  }));
  cases.push_back(row_case("drop_class/backward/" + shape, bytes, [=](GpuBench& bench) {
    return DropClassBackward{.d_y = bench.random(bf16, without),
                             .d_x = bench.random(bf16, with),
                             .d_positions = bench.zeros(f32, {patches, width})};
  }));
}

// As row_case; beside cuDNN instead of a copy where there is one that takes the picture.
template <class Make>
GpuCase depthwise_case(const std::string& name, double bytes, const Make& make) {
  GpuCase beside_copy = row_case(name, bytes, make);
  return {.name = name, .bytes = bytes, .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            const auto op = make(bench);
            const auto library = [&bench, op] { return bench.run_library(op); };
            if (!library()) return beside_copy.prepare(bench);
            return {.ours = [&bench, op] { run(bench.stream(), op); },
                    .reference = library,
                    .reference_name = "cuDNN"};
          }};
}

void add_convolutions(std::vector<GpuCase>& cases, const Grids& g) {
  const Shape picture = g.shape(), weight = {g.channels, 3, 3};
  const double bytes = 4 * g.elements();
  const std::string shape = fmt::format("{}x{}x{}x{}", g.tiles, g.grid, g.grid, g.channels);
  cases.push_back(depthwise_case("depthwise/forward/" + shape, bytes, [=](GpuBench& bench) {
    return DepthwiseConv3x3Forward{.x = bench.random(bf16, picture),
                                   .weight = bench.random(bf16, weight),
                                   .y = bench.random(bf16, picture)};
  }));
  cases.push_back(depthwise_case("depthwise/input_gradient/" + shape, bytes, [=](GpuBench& bench) {
    return DepthwiseConv3x3BackwardInput{.d_y = bench.random(bf16, picture),
                                         .weight = bench.random(bf16, weight),
                                         .d_x = bench.random(bf16, picture)};
  }));
  cases.push_back(row_case("depthwise/weight_gradient/" + shape, bytes, [=](GpuBench& bench) {
    return DepthwiseConv3x3BackwardWeight{.x = bench.random(bf16, picture),
                                          .d_y = bench.random(bf16, picture),
                                          .d_weight = bench.zeros(f32, weight)};
  }));
}

// The mean of a whole picture has its gradient added to another one, which it replaces.
void add_pools(std::vector<GpuCase>& cases, const Grids& in, std::int64_t out_side) {
  const Grids out{in.tiles, out_side, in.channels};
  const Shape fine = in.shape(), coarse = out.shape();
  const bool adds = out_side == 1;
  const double bytes = 2 * (in.elements() + out.elements());
  const std::string shape = fmt::format("{}x{}x{}/to_{}", in.tiles, in.grid, in.channels, out_side);
  cases.push_back(row_case("adaptive_pool/forward/" + shape, bytes, [=](GpuBench& bench) {
    return AdaptiveAveragePoolForward{.x = bench.random(bf16, fine),
                                      .y = bench.random(bf16, coarse)};
  }));
  cases.push_back(row_case("adaptive_pool/backward/" + shape,
                           bytes + (adds ? 2 * in.elements() : 0), [=](GpuBench& bench) {
                             const Tensor d_x = bench.random(bf16, fine);
                             return AdaptiveAveragePoolBackward{.d_y = bench.random(bf16, coarse),
                                                                .d_extra = adds ? d_x : Tensor(),
                                                                .d_x = d_x};
                           }));
}

void add_excitations(std::vector<GpuCase>& cases, const Grids& g) {
  const Shape images = {g.tiles, g.pixels(), g.channels}, scales = {g.tiles, g.channels};
  const std::string shape = fmt::format("{}x{}x{}", g.tiles, g.pixels(), g.channels);
  cases.push_back(row_case("excite/forward/" + shape, 4 * g.elements(), [=](GpuBench& bench) {
    return ExciteForward{.x = bench.random(bf16, images),
                         .scale = bench.random(bf16, scales),
                         .y = bench.random(bf16, images)};
  }));
  cases.push_back(row_case("excite/backward/" + shape, 6 * g.elements(), [=](GpuBench& bench) {
    return ExciteBackward{.x = bench.random(bf16, images),
                          .scale = bench.random(bf16, scales),
                          .d_y = bench.random(bf16, images),
                          .d_x = bench.random(bf16, images),
                          .d_scale = bench.random(bf16, scales)};
  }));
}

}  // namespace

std::vector<GpuCase> picture_cases() {
  std::vector<GpuCase> cases;
  const Preset& preset = presets().front();  // tower and connector are the same in all
  const ModelConfig& model = preset.model;
  for (const TileBatch& pictures : preset.pictures) {
    // Stage 1 squashes a picture to a tile; the later ones cut it to nine, three a side, at most.
    add_images(cases, model.vision, pictures, pictures.side == model.vision.side ? 1 : 3);
    add_class_tokens(cases, {pictures.tiles, pictures.grid, model.vision.width});
    const std::int64_t channels = model.connector.hidden, out_side = model.connector.out_side;
    const Grids fine{pictures.tiles, pictures.grid, channels};
    const Grids coarse{pictures.tiles, out_side, channels};
    add_pools(cases, fine, out_side);
    for (const Grids& grids : {fine, coarse}) {
      add_convolutions(cases, grids);
      add_pools(cases, grids, 1);
      add_excitations(cases, grids);
    }
  }
  return cases;
}

}  // namespace orchard::bench
