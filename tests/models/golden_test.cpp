// The model at toy size against public PyTorch implementations of its parts (Hugging Face's CLIP
// and Qwen3, timm's RegNet stage), run in fp64 by tests/goldens/make_model_golden.py.
#include "kernels/image/image.h"
#include "models/multimodal.h"
#include "tests/goldens/golden_checks.h"
#include "tests/goldens/model_golden.h"
#include "tests/models/layer_test.h"
#include "tests/models/toy_model.h"

namespace orchard::testing {
namespace {

// fp32 against fp64, relative to the largest element: a few tens of roundings of 6e-8, most of
// which average out. Still tight enough to tell a norm's epsilon of 1e-5 from 1e-6.
constexpr double output_tolerance = 2e-6;
// Relative to the gradient's norm: sums with cancellation are smaller than their terms.
constexpr double gradient_tolerance = 1e-5;

// make_model_golden.py holds the same numbers.
ModelConfig golden_model() {
  ModelConfig config = toy_model();
  config.vision.layers = 2;
  config.vision.side = 10;
  config.decoder.moe = {};
  return config;
}

class GoldenBench : public LayerBench {
 public:
  void allocate() {
    store().allocate(device(), stream(), DType::f32);
    golden::fill_parameters(store());
  }

  Tensor values(const std::string& name, Shape shape) {
    const Tensor t = normal(name, shape);
    golden::fill(t, name);
    return t;
  }

  // Pictures through the real patch layout.
  Tensor patches(const VisionConfig& v, std::int64_t tiles) {
    const Tensor canvas = normal("canvas", {tiles * v.side, v.side, 3});
    for (std::int64_t i = 0; i < canvas.numel(); ++i)
      canvas.data<float>()[i] = golden::pixel("pictures", i);
    const Tensor patches = normal("patches", {tiles, v.patches(), v.patch_values()});
    run(stream(), NormalisePatchify{.x = canvas,
                                    .height = tiles * v.side,
                                    .width = v.side,
                                    .side = v.side,
                                    .patch = v.patch,
                                    .patches = patches});
    std::vector<std::int32_t> offsets;
    for (std::int64_t t = 0; t <= tiles; ++t)
      offsets.push_back(static_cast<std::int32_t>(t * (v.patches() + 1)));
    batch().tiles = tiles;
    batch().tower_rows = offsets.back();
    batch().tile_offsets = integers(offsets);
    batch().patches = patches;
    return patches;
  }

  // Two sequences of 16 rows; see make_model_golden.py.
  void pack_documents() {
    DeviceBatch& b = batch();
    b.rows = 32;
    b.sequences = 2;
    b.sources = integers({1, -1, -2, -3, -4, 10, 11,  -5,  -6,  -7, -8, 12, 13, 14, 15, 2,
                          1, 20, 21, 2,  1,  -9, -10, -11, -12, 22, 23, 2,  3,  3,  3,  3});
    b.positions = integers({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                            0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6,  7,  0,  1,  2,  3});
    b.document_offsets = integers({0, 16, 20, 28, 32});
    b.sequence_offsets = integers({0, 16, 32});
    b.real_rows = integers({16, 12});
    std::vector<std::int32_t> rows{4, 5, 10, 11, 12, 13, 14, 16, 17, 18, 24, 25, 26};
    std::vector<std::int32_t> ids{10, 11, 12, 13, 14, 15, 2, 20, 21, 2, 22, 23, 2};
    b.targets = static_cast<std::int64_t>(rows.size());
    rows.resize(target_multiple, -1);
    ids.resize(target_multiple, -1);
    b.target_rows = integers(rows);
    b.target_ids = integers(ids);
  }

  // Every parameter, and d_x as "x"; the goldens must name them all.
  void expect_gradients(std::span<const golden::Summary> goldens, ConstTensor d_x = {}) {
    double largest = 0;
    for (const golden::Summary& g : goldens) largest = std::max(largest, g.norm);
    std::size_t parameters = 0;
    for (const golden::Summary& g : goldens) {
      const Parameter* p = store().find(g.name);
      parameters += p != nullptr;
      ASSERT_TRUE(p || (g.name == "x" && d_x)) << g.name << " is unknown";
      // A key bias shifts all scores of a query alike, so its gradient is exactly zero.
      golden::expect_summary(p ? ConstTensor(p->gradient) : d_x, g, gradient_tolerance,
                             1e-7 * largest);
    }
    EXPECT_EQ(parameters, store().parameters().size()) << "a parameter has no golden";
  }
};

class GoldenVision : public GoldenBench {
 public:
  explicit GoldenVision(FeatureLayer features)
      : config_(with(features)), model_(store(), config_, Recompute::none) {
    allocate();
    patches(config_, 2);
    model_.append_to(chain_);
  }

  ConstTensor forward() {
    Pass p = pass();
    return chain_.forward(p, chain_.whole(), {}, DType::f32, saved_);
  }

  void backward(ConstTensor d_y) {
    Pass p = pass();
    chain_.backward(p, d_y, saved_, {});
  }

  const VisionConfig& config() const { return config_; }

 private:
  static VisionConfig with(FeatureLayer features) {
    VisionConfig config = golden_model().vision;
    config.features = features;
    return config;
  }

  VisionConfig config_;
  VisionTransformer model_;
  Chain chain_;
  Chain::Saved saved_;
};

TEST(VisionGolden, OutputAndGradientsAreThoseOfClip) {
  GoldenVision vision(FeatureLayer::post_norm);
  const ConstTensor y = vision.forward();
  golden::expect_close(y, golden::vision, output_tolerance, "output");
  const std::int64_t rows = vision.config().patches(), width = vision.config().width;
  const Tensor r = vision.values("d vision", {2, rows, width});
  const Tensor d_y = vision.normal("d_y", {2, rows + 1, width});
  for (std::int64_t t = 0; t < 2; ++t) {
    float* const tile = d_y.data<float>() + t * (rows + 1) * width;
    std::fill_n(tile, width, 0.0f);  // the class token's output is dropped
    std::copy_n(r.data<float>() + t * rows * width, rows * width, tile + width);
  }
  vision.backward(d_y.reshape({2 * (rows + 1), width}));
  vision.expect_gradients(golden::vision_gradients);
}

TEST(VisionGolden, OtherFeatureLayersAreClipsHiddenStates) {
  constexpr FeatureLayer layers[] = {FeatureLayer::last, FeatureLayer::penultimate};
  for (std::size_t i = 0; i < 2; ++i) {
    GoldenVision vision(layers[i]);
    golden::expect_summary(vision.forward(), golden::vision_other_features[i], output_tolerance, 0);
  }
}

void expect_connector(const std::string& name, const ModelConfig& config,
                      std::span<const double> output, std::span<const golden::Summary> gradients) {
  GoldenBench bench;
  const Connector model(bench.store(), config);
  bench.allocate();
  const std::int64_t rows = 2 * (config.vision.patches() + 1);
  const Tensor x = bench.values(name, {rows, config.vision.width});
  bench.batch().tiles = 2;
  bench.batch().tower_rows = rows;
  Pass pass = bench.pass();
  Connector::Saved saved;
  const ConstTensor y = model.forward(pass, {x, {}}, saved).sum;
  golden::expect_close(y, output, output_tolerance, name);
  const Tensor d_x = bench.normal("d_x", x.shape());
  model.backward_input(pass, bench.values("d " + name, y.shape()), saved, d_x);
  model.backward_weight(pass, saved);
  bench.expect_gradients(gradients, d_x);
}

TEST(ConnectorGolden, PoolingFiveToTwoWithOverlap) {
  expect_connector("connector", golden_model(), golden::connector, golden::connector_gradients);
}

TEST(ConnectorGolden, ThreeBottlenecksOnEitherSide) {
  ModelConfig config = golden_model();
  config.vision.side = 14;
  config.connector.depth = 3;
  config.connector.out_side = 3;
  expect_connector("deep_connector", config, golden::deep_connector,
                   golden::deep_connector_gradients);
}

TEST(DecoderGolden, DenseDecoderIsQwen3OnEachDocument) {
  GoldenBench bench;
  const DecoderConfig config = golden_model().decoder;
  Decoder model(bench.store(), config, Recompute::none);
  bench.allocate();
  model.prepare(bench.device(), bench.stream());
  bench.pack_documents();
  Pass pass = bench.pass();
  Chain chain;
  model.append_to(chain);
  Chain::Saved saved;
  const ConstTensor y = chain.forward(
      pass, chain.whole(), bench.values("decoder", {32, config.hidden}), DType::f32, saved);
  golden::expect_close(y, golden::decoder, output_tolerance, "output");
  const Tensor d_x = bench.normal("d_x", y.shape());
  chain.backward(pass, bench.values("d decoder", y.shape()), saved, d_x);
  bench.expect_gradients(golden::decoder_gradients, d_x);
}

struct MixtureGolden {
  std::string name;
  MoeConfig moe;
  std::span<const double> output, balance, z;
  std::span<const int> counts, chosen;
  std::span<const golden::Summary> gradients;

  friend void PrintTo(const MixtureGolden& golden, std::ostream* out) { *out << golden.name; }
};

class MixtureGoldens : public ::testing::TestWithParam<MixtureGolden> {};

TEST_P(MixtureGoldens, OutputLossesChoicesAndGradients) {
  const MixtureGolden& expected = GetParam();
  GoldenBench bench;
  DecoderConfig config = golden_model().decoder;
  config.moe = expected.moe;
  const MixtureOfExperts model(bench.store(), "moe", config);
  bench.allocate();
  bench.pack_documents();
  const HostScales scales{.balance = 0.5f, .z = 0.25f};
  Pass pass = bench.pass(scales);
  MixtureOfExperts::Saved saved;
  const Tensor x = bench.values(expected.name, {32, config.hidden});
  const Tensor y = model.forward(pass, x, saved);
  golden::expect_close(y, expected.output, output_tolerance, "output");
  const RouterStatistics& s = saved.statistics;
  golden::expect_close(s.balance_loss, expected.balance, output_tolerance, "balance loss");
  golden::expect_close(s.z_loss, expected.z, output_tolerance, "z loss");
  golden::expect_equal(s.expert_counts, expected.counts, "expert counts");
  golden::expect_equal(s.chosen, expected.chosen, "choices");  // padding comes last

  const Tensor d_x = bench.normal("d_x", x.shape());
  const Tensor d_y = bench.values("d " + expected.name, y.shape());
  model.backward_input(pass, d_y, saved, d_x);
  model.backward_weight(pass, saved);
  bench.expect_gradients(expected.gradients, d_x);
}

INSTANTIATE_TEST_SUITE_P(Moe, MixtureGoldens,
                         ::testing::Values(MixtureGolden{"moe_dropless",
                                                         {.experts = 4},
                                                         golden::moe_dropless,
                                                         golden::moe_dropless_balance,
                                                         golden::moe_dropless_z,
                                                         golden::moe_dropless_counts,
                                                         golden::moe_dropless_chosen,
                                                         golden::moe_dropless_gradients},
                                           MixtureGolden{"moe_capacity",
                                                         {.experts = 4, .capacity_factor = 1},
                                                         golden::moe_capacity,
                                                         golden::moe_capacity_balance,
                                                         golden::moe_capacity_z,
                                                         golden::moe_capacity_counts,
                                                         golden::moe_capacity_chosen,
                                                         golden::moe_capacity_gradients},
                                           MixtureGolden{
                                               "moe_top3",
                                               {.experts = 6,
                                                .top_k = 3,
                                                .capacity_factor = 1.25f,
                                                .balance_counts = BalanceCounts::all_choices},
                                               golden::moe_top3,
                                               golden::moe_top3_balance,
                                               golden::moe_top3_z,
                                               golden::moe_top3_counts,
                                               golden::moe_top3_chosen,
                                               golden::moe_top3_gradients}),
                         [](const auto& test) { return test.param.name; });

void expect_multimodal(const MoeConfig& moe, std::span<const double> losses, double total,
                       std::span<const golden::Summary> gradients) {
  ModelConfig config = golden_model();
  config.decoder.moe = moe;
  GoldenBench bench;
  MultimodalModel model(bench.store(), config);
  bench.allocate();
  model.prepare(bench.device(), bench.stream());
  bench.pack_documents();
  bench.patches(config.vision, 3);
  const HostScales scales{.target = 1.0f / 13, .balance = 0.01f / 2, .z = 0.001f / 28};
  Pass pass = bench.pass(scales);
  MultimodalModel::Saved saved;
  model.forward(pass, saved);
  const ConstTensor each = model.losses(saved).slice(0, 13);
  golden::expect_close(each, losses, output_tolerance, "losses of the targets");
  double sum = 0;
  for (int i = 0; i < 13; ++i) sum += scales.target * each.data<float>()[i];
  for (const RouterStatistics& s : model.router_statistics(saved)) {
    for (int i = 0; i < 2; ++i) {
      sum +=
          scales.balance * s.balance_loss.data<float>()[i] + scales.z * s.z_loss.data<float>()[i];
    }
  }
  EXPECT_NEAR(sum, total, output_tolerance * total);
  model.backward(pass, saved);
  bench.expect_gradients(gradients);
}

TEST(MultimodalGolden, LossAndEveryGradient) {
  expect_multimodal({.experts = 4}, golden::multimodal_losses, golden::multimodal_total[0],
                    golden::multimodal_gradients);
}

TEST(MultimodalGolden, LossAndEveryGradientWithDroppedTokens) {
  expect_multimodal({.experts = 4, .capacity_factor = 1}, golden::multimodal_capacity_losses,
                    golden::multimodal_capacity_total[0], golden::multimodal_capacity_gradients);
}

}  // namespace
}  // namespace orchard::testing
