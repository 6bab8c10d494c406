// Every layer's analytic gradients against finite differences.
#include <gtest/gtest-spi.h>

#include "kernels/norm/norm.h"
#include "models/bottleneck.h"
#include "models/connector.h"
#include "models/feed_forward.h"
#include "models/moe.h"
#include "models/transformer_block.h"
#include "models/vision.h"
#include "tests/models/layer_test.h"

namespace orchard::testing {
namespace {

// L of a layer with plain forward(pass, x, saved) and the two halves of backward.
template <class Layer>
Differentiable plain(LayerBench& bench, const Layer& layer, Tensor x, ConstTensor r) {
  using Saved = typename Layer::Saved;
  return differentiable<Saved>(
      bench, x, r, [=, &layer](Pass& pass, Saved& saved) { return layer.forward(pass, x, saved); },
      [=, &layer](Pass& pass, Saved& saved, Tensor d_x) {
        layer.backward_input(pass, r, saved, d_x);
        layer.backward_weight(pass, saved);
      });
}

template <class Layer>
void check_layer(LayerBench& bench, const Layer& layer, Tensor x, Shape y_shape) {
  expect_gradients(bench, plain(bench, layer, x, bench.normal("r", y_shape)));
}

// Two documents in one sequence, three rows of padding at the end of the second sequence.
void set_up_documents(LayerBench& bench, std::int64_t rows) {
  DeviceBatch& batch = bench.batch();
  const auto half = static_cast<std::int32_t>(rows / 2);
  batch.rows = rows;
  batch.sequences = 2;
  std::vector<std::int32_t> positions;
  positions.reserve(static_cast<std::size_t>(rows));
  for (std::int32_t r = 0; r < rows; ++r)
    positions.push_back(r < 3 ? r : r < half ? r - 3 : r - half);
  batch.positions = bench.integers(positions);
  batch.document_offsets = bench.integers({0, 3, half, static_cast<std::int32_t>(rows)});
  batch.sequence_offsets = bench.integers({0, half, static_cast<std::int32_t>(rows)});
  batch.real_rows = bench.integers({half, static_cast<std::int32_t>(rows) - half - 3});
}

DecoderConfig toy_decoder() {
  return {.layers = 2,
          .hidden = 24,
          .ffn = 40,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 8,
          .vocabulary = 32,
          .max_positions = 16,
          .moe = {.experts = 0}};
}

TEST(LayerGradients, LinearWithBias) {
  LayerBench bench;
  const Linear layer(bench.store(), {.name = "w", .in = 7, .out = 5, .bias = "b"});
  bench.allocate_parameters();
  check_layer(bench, layer, bench.normal("x", {9, 7}), {9, 5});
}

TEST(LayerGradients, DecoderAttention) {
  LayerBench bench;
  const DecoderConfig config = toy_decoder();
  ConstTensor rotation;
  const Attention layer(bench.store(), AttentionConfig::of("attention", config, &rotation));
  bench.allocate_parameters();
  const Tensor table = bench.normal("rotation", {config.max_positions, config.head_dim});
  rotation_table(table.data<float>(), config.max_positions, config.head_dim, config.rope_theta);
  rotation = table;
  set_up_documents(bench, 20);
  check_layer(bench, layer, bench.normal("x", {20, 24}), {20, 24});
}

TEST(LayerGradients, VisionAttention) {
  LayerBench bench;
  const VisionConfig config{.layers = 2, .width = 24, .heads = 3, .mlp_width = 40};
  const Attention layer(bench.store(), AttentionConfig::of("attention", config));
  bench.allocate_parameters();
  bench.batch().tower_rows = 10;
  bench.batch().tile_offsets = bench.integers({0, 5, 10});
  check_layer(bench, layer, bench.normal("x", {10, 24}), {10, 24});
}

TEST(LayerGradients, SwiGlu) {
  LayerBench bench;
  const SwiGlu layer(bench.store(), "ffn", toy_decoder());
  bench.allocate_parameters();
  bench.batch().rows = 11;
  check_layer(bench, layer, bench.normal("x", {11, 24}), {11, 24});
}

TEST(LayerGradients, VisionMlp) {
  LayerBench bench;
  const VisionMlp layer(bench.store(), "mlp",
                        {.layers = 2, .width = 12, .heads = 3, .mlp_width = 20});
  bench.allocate_parameters();
  bench.batch().tower_rows = 11;
  check_layer(bench, layer, bench.normal("x", {11, 12}), {11, 12});
}

class MoeGradients : public ::testing::TestWithParam<float> {};

// The choice of experts is a step function: the harness replays the choice of the unperturbed
// input. L adds the two auxiliary losses, so that their gradients are checked with the gates'.
TEST_P(MoeGradients, MixtureOfExperts) {
  LayerBench bench;
  DecoderConfig config = toy_decoder();
  config.moe = {.experts = 4, .every = 1, .top_k = 2, .capacity_factor = GetParam()};
  const MixtureOfExperts layer(bench.store(), "moe", config);
  bench.allocate_parameters();
  set_up_documents(bench, 20);
  const Tensor x = bench.normal("x", {20, 24});
  const Tensor r = bench.normal("r", {20, 24});
  RoutingReplay replay;
  const HostScales scales{.balance = 0.7f, .z = 0.3f};
  const auto forward = [&](MixtureOfExperts::Saved& saved) {
    Pass pass = bench.fresh_pass(scales, replay.empty() ? nullptr : &replay);
    return dot(layer.forward(pass, x, saved), r);
  };
  {
    MixtureOfExperts::Saved saved;
    forward(saved);
    replay[layer.router()] = bench.kept(saved.statistics.chosen);
  }
  expect_gradients(bench, {.value =
                               [&] {
                                 MixtureOfExperts::Saved saved;
                                 double value = forward(saved);
                                 for (int s = 0; s < 2; ++s) {
                                   value += scales.balance *
                                                saved.statistics.balance_loss.data<float>()[s] +
                                            scales.z * saved.statistics.z_loss.data<float>()[s];
                                 }
                                 return value;
                               },
                           .gradient =
                               [&](Tensor d_x) {
                                 Pass pass = bench.fresh_pass(scales, &replay);
                                 MixtureOfExperts::Saved saved;
                                 layer.forward(pass, x, saved);
                                 layer.backward_input(pass, r, saved, d_x);
                                 layer.backward_weight(pass, saved);
                               },
                           .x = x});
}

INSTANTIATE_TEST_SUITE_P(DroplessAndCapacity, MoeGradients, ::testing::Values(0.0f, 0.75f));

// Channel layer norm divides by a deviation that can be small: a smaller step, and the error that
// fp32 then carries (1e-6 / h of L).
class BottleneckGradients : public ::testing::TestWithParam<std::pair<int, int>> {};

TEST_P(BottleneckGradients, Bottleneck) {
  LayerBench bench;
  const auto [in, out] = GetParam();
  const Bottleneck layer(bench.store(), "bottleneck", in, out);
  bench.allocate_parameters();
  const PixelGrid grid{2, 4, 3};
  const Tensor x = bench.normal("x", {grid.rows(), in});
  const Tensor r = bench.normal("r", {grid.rows(), out});
  using Saved = Bottleneck::Saved;
  expect_gradients(
      bench,
      differentiable<Saved>(
          bench, x, r,
          [&](Pass& pass, Saved& saved) { return layer.forward(pass, x, grid, saved); },
          [&](Pass& pass, Saved& saved, Tensor d_x) {
            layer.backward_input(pass, r, saved, d_x);
            layer.backward_weight(pass, saved);
          }),
      5e-3);
}

INSTANTIATE_TEST_SUITE_P(SameAndChangedWidth, BottleneckGradients,
                         ::testing::Values(std::pair(16, 16), std::pair(12, 20)));

ModelConfig toy_vision() {
  ModelConfig config;
  config.vision = {.layers = 2, .width = 24, .heads = 3, .mlp_width = 32, .patch = 2, .side = 10};
  config.connector = {.hidden = 16, .depth = 1, .out_side = 2};
  config.decoder = toy_decoder();
  return config;
}

// 5 x 5 patches into 2 x 2: the pooling bins overlap.
TEST(LayerGradients, Connector) {
  LayerBench bench;
  const ModelConfig config = toy_vision();
  const Connector layer(bench.store(), config);
  bench.allocate_parameters();
  bench.batch().tiles = 2;
  bench.batch().tower_rows = 2 * 26;
  const Tensor x = bench.normal("x", {2 * 26, 24});
  const Tensor r = bench.normal("r", {2 * 4, 24});
  using Saved = Connector::Saved;
  expect_gradients(bench,
                   differentiable<Saved>(
                       bench, x, r,
                       [&](Pass& pass, Saved& saved) {
                         return layer.forward(pass, {x, {}}, saved).sum;
                       },
                       [&](Pass& pass, Saved& saved, Tensor d_x) {
                         layer.backward_input(pass, r, saved, d_x);
                         layer.backward_weight(pass, saved);
                       }),
                   5e-3);
}

class VisionGradients : public ::testing::TestWithParam<FeatureLayer> {};

TEST_P(VisionGradients, VisionTransformer) {
  LayerBench bench;
  ModelConfig config = toy_vision();
  config.vision.features = GetParam();
  const VisionTransformer layer(bench.store(), config.vision, Recompute::none);
  bench.allocate_parameters();
  bench.batch().tiles = 2;
  bench.batch().tiles = 2;
  bench.batch().tower_rows = 52;
  bench.batch().tile_offsets = bench.integers({0, 26, 52});
  bench.batch().patches = bench.normal("patches", {2, 25, 12});
  Chain chain;
  layer.append_to(chain);
  const Tensor r = bench.normal("r", {52, 24});
  using Saved = Chain::Saved;
  expect_gradients(
      bench, differentiable<Saved>(
                 bench, {}, r,
                 [&](Pass& pass, Saved& saved) {
                   return chain.forward(pass, chain.whole(), {}, DType::f32, saved);
                 },
                 [&](Pass& pass, Saved& saved, Tensor) { chain.backward(pass, r, saved, {}); }));
}

INSTANTIATE_TEST_SUITE_P(EveryFeatureLayer, VisionGradients,
                         ::testing::Values(FeatureLayer::post_norm, FeatureLayer::last,
                                           FeatureLayer::penultimate));

// A wrong gradient must be seen: the harness itself, on a layer whose bias gradient is doubled.
TEST(LayerGradients, HarnessSeesAWrongGradient) {
  LayerBench bench;
  const Linear layer(bench.store(), {.name = "w", .in = 3, .out = 2, .bias = "b"});
  bench.allocate_parameters();
  const Tensor x = bench.normal("x", {4, 3}), r = bench.normal("r", {4, 2});
  Differentiable wrong = plain(bench, layer, x, r);
  wrong.gradient = [&, right = wrong.gradient](Tensor d_x) {
    right(d_x);
    bench.store().parameters().back().gradient.data<float>()[0] *= 2;
  };
  ::testing::TestPartResultArray failures;
  {
    const ::testing::ScopedFakeTestPartResultReporter reporter(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &failures);
    expect_gradients(bench, wrong);
  }
  EXPECT_GT(failures.size(), 0);
}

}  // namespace
}  // namespace orchard::testing
