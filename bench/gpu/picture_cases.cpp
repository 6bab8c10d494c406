// Class tokens, convolution and pooling at the shapes of the presets: 16 tiles of 27 x 27 patches,
// 1280 wide in the vision tower, 1024 in the connector, which brings them to 12 x 12.
#include "bench/gpu/row_case.h"
#include "kernels/convolution/convolution.h"
#include "kernels/cuda/cudnn.h"
#include "kernels/embedding/embedding.h"

namespace orchard::bench {
namespace {

constexpr std::int64_t tiles = 16, side = 27, out_side = 12, channels = 1024, width = 1280;
constexpr DType f32 = DType::f32, bf16 = DType::bf16;

void add_class_tokens(std::vector<GpuCase>& cases) {
  constexpr std::int64_t patches = side * side;
  const Shape with = {tiles, patches + 1, width}, without = {tiles, patches, width};
  const double n = static_cast<double>(tiles * patches * width);
  const std::string shape = fmt::format("{}x{}x{}", tiles, patches, width);
  cases.push_back(row_case("prepend_class/forward/" + shape, 4 * n, [=](GpuBench& bench) {
    return PrependClassForward{.patches = bench.random(bf16, without),
                               .class_token = bench.random(bf16, {width}),
                               .positions = bench.random(bf16, {patches + 1, width}),
                               .y = bench.random(bf16, with)};
  }));
  cases.push_back(row_case("prepend_class/backward/" + shape, 4 * n, [=](GpuBench& bench) {
    return PrependClassBackward{.d_y = bench.random(bf16, with),
                                .d_patches = bench.random(bf16, without),
                                .d_class_token = bench.zeros(f32, {width}),
                                .d_positions = bench.zeros(f32, {patches + 1, width})};
  }));
  cases.push_back(row_case("drop_class/backward/" + shape, 4 * n, [=](GpuBench& bench) {
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
            const auto library = [&bench, op] { return cuda::run_library(bench.stream(), op); };
            if (!cuda::cudnn_absence().empty() || !library()) return beside_copy.prepare(bench);
            return {.ours = [&bench, op] { run(bench.stream(), op); },
                    .reference = library,
                    .reference_name = "cuDNN"};
          }};
}

void add_convolutions(std::vector<GpuCase>& cases, std::int64_t grid) {
  const Shape picture = {tiles, grid, grid, channels}, weight = {channels, 3, 3};
  const double n = static_cast<double>(tiles * grid * grid * channels);
  const std::string shape = fmt::format("{}x{}x{}x{}", tiles, grid, grid, channels);
  cases.push_back(depthwise_case("depthwise/forward/" + shape, 4 * n, [=](GpuBench& bench) {
    return DepthwiseConv3x3Forward{.x = bench.random(bf16, picture),
                                   .weight = bench.random(bf16, weight),
                                   .y = bench.random(bf16, picture)};
  }));
  cases.push_back(depthwise_case("depthwise/input_gradient/" + shape, 4 * n, [=](GpuBench& bench) {
    return DepthwiseConv3x3BackwardInput{.d_y = bench.random(bf16, picture),
                                         .weight = bench.random(bf16, weight),
                                         .d_x = bench.random(bf16, picture)};
  }));
  cases.push_back(row_case("depthwise/weight_gradient/" + shape, 4 * n, [=](GpuBench& bench) {
    return DepthwiseConv3x3BackwardWeight{.x = bench.random(bf16, picture),
                                          .d_y = bench.random(bf16, picture),
                                          .d_weight = bench.zeros(f32, weight)};
  }));
}

void add_pools(std::vector<GpuCase>& cases, std::int64_t in, std::int64_t out) {
  const Shape fine = {tiles, in, in, channels}, coarse = {tiles, out, out, channels};
  const double n = static_cast<double>(tiles * channels * (in * in + out * out));
  const std::string shape = fmt::format("{}x{}x{}/to_{}", tiles, in, channels, out);
  cases.push_back(row_case("adaptive_pool/forward/" + shape, 2 * n, [=](GpuBench& bench) {
    return AdaptiveAveragePoolForward{.x = bench.random(bf16, fine),
                                      .y = bench.random(bf16, coarse)};
  }));
  cases.push_back(row_case("adaptive_pool/backward/" + shape, 2 * n, [=](GpuBench& bench) {
    return AdaptiveAveragePoolBackward{.d_y = bench.random(bf16, coarse),
                                       .d_x = bench.random(bf16, fine)};
  }));
}

}  // namespace

std::vector<GpuCase> picture_cases() {
  std::vector<GpuCase> cases;
  add_class_tokens(cases);
  for (const std::int64_t grid : {side, out_side}) add_convolutions(cases, grid);
  add_pools(cases, side, out_side);
  for (const std::int64_t grid : {side, out_side}) add_pools(cases, grid, 1);
  return cases;
}

}  // namespace orchard::bench
