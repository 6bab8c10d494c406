// The whole model at toy size: gradients, recomputation, identities of the mixture of experts.
#include "models/multimodal.h"

#include "models/flops.h"
#include "tests/models/layer_test.h"
#include "tests/models/toy_model.h"

namespace orchard::testing {
namespace {

// Two sequences of 12 rows; the first opens with a picture (4 visual rows), the second holds two
// short documents and padding.
class ToyModel {
 public:
  explicit ToyModel(const ModelConfig& config) : model_(bench_.store(), config) {
    bench_.allocate_parameters();
    model_.prepare(bench_.device(), bench_.stream());
    DeviceBatch& b = bench_.batch();
    b.rows = 24;
    b.sequences = 2;
    b.sources = bench_.integers(
        {1, -1, -2, -3, -4, 10, 11, 12, 13, 14, 15, 2, 1, 20, 21, 2, 1, 22, 23, 24, 2, 3, 3, 3});
    b.positions =
        bench_.integers({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2});
    b.document_offsets = bench_.integers({0, 12, 16, 21, 24});
    b.sequence_offsets = bench_.integers({0, 12, 24});
    b.real_rows = bench_.integers({12, 9});
    std::vector<std::int32_t> rows{4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 17, 18, 19};
    std::vector<std::int32_t> ids{10, 11, 12, 13, 14, 15, 2, 20, 21, 2, 22, 23, 24, 2};
    b.targets = static_cast<std::int64_t>(rows.size());
    rows.resize(target_multiple, -1);
    ids.resize(target_multiple, -1);
    b.target_rows = bench_.integers(rows);
    b.target_ids = bench_.integers(ids);
    if (!config.has_vision()) return;
    b.tiles = 1;
    b.patches =
        bench_.normal("patches", {1, config.vision.patches(), config.vision.patch_values()});
    b.tower_rows = config.vision.patches() + 1;
    b.tile_offsets = bench_.integers({0, static_cast<std::int32_t>(config.vision.patches() + 1)});
  }

  LayerBench& bench() { return bench_; }

  // Total loss of the batch; with `gradients` it also fills the store's gradients.
  double loss(bool gradients) {
    Pass pass = bench_.fresh_pass(scales_, replay_.empty() ? nullptr : &replay_);
    MultimodalModel::Saved saved;
    pass.purpose = gradients ? Purpose::train : Purpose::evaluate;
    model_.forward(pass, saved);
    double total = 0;
    const ConstTensor losses = model_.losses(saved);
    for (std::int64_t i = 0; i < losses.numel(); ++i)
      total += losses.data<float>()[i] * scales_.target;
    cross_entropy_ = total;
    for (const RouterStatistics& s : model_.router_statistics(saved)) {
      for (int i = 0; i < 2; ++i) {
        total += scales_.balance * s.balance_loss.data<float>()[i] +
                 scales_.z * s.z_loss.data<float>()[i];
      }
    }
    if (gradients) {
      bench_.store().zero_gradients(bench_.stream());
      // The head adds the table's gradient in forward, so forward runs once more after the zeroing.
      bench_.arena().reset(bench_.stream());
      model_.forward(pass, saved);
      model_.backward(pass, saved);
    }
    return total;
  }

  // Of the last call of loss: its cross-entropy part.
  double cross_entropy() const { return cross_entropy_; }

  // Keeps today's choice of experts for the passes that follow.
  void freeze_routing() {
    Pass pass = bench_.fresh_pass(scales_);
    MultimodalModel::Saved saved;
    pass.purpose = Purpose::evaluate;
    model_.forward(pass, saved);
    const auto routers = model_.decoder().routers();
    const auto statistics = model_.router_statistics(saved);
    for (std::size_t i = 0; i < routers.size(); ++i)
      replay_[routers[i]] = bench_.kept(statistics[i].chosen);
  }

  std::vector<float> gradients() {
    const ConstTensor flat = bench_.store().flat_gradients();
    return {flat.data<float>(), flat.data<float>() + flat.numel()};
  }

 private:
  LayerBench bench_;
  MultimodalModel model_;
  HostScales scales_{.target = 1.0f / 14, .balance = 0.01f / 2, .z = 0.001f / 21};
  RoutingReplay replay_;
  double cross_entropy_ = 0;
};

TEST(Multimodal, EveryParametersGradientMatchesFiniteDifferences) {
  ToyModel toy(toy_model());
  toy.freeze_routing();
  expect_gradients(toy.bench(),
                   {.value = [&] { return toy.loss(false); },
                    .gradient = [&](Tensor) { toy.loss(true); },
                    .x = {}},
                   1e-2, 2e-2);
}

TEST(Multimodal, RecomputationChangesNoBit) {
  ModelConfig config = toy_model();
  ToyModel plain(config);
  config.recompute = Recompute::blocks;
  ToyModel recomputed(config);
  EXPECT_EQ(plain.loss(true), recomputed.loss(true));
  EXPECT_EQ(plain.gradients(), recomputed.gradients());
}

TEST(Multimodal, TwoRunsAreBitEqual) {
  ToyModel a(toy_model()), b(toy_model());
  EXPECT_EQ(a.loss(true), b.loss(true));
  EXPECT_EQ(a.gradients(), b.gradients());
}

TEST(Multimodal, TextOnlyBatchLeavesTheVisionTowerAlone) {
  ToyModel toy(toy_model());
  DeviceBatch& b = toy.bench().batch();
  b.tiles = 0;
  b.tower_rows = 0;
  b.sources = toy.bench().integers(
      {1, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 2, 1, 20, 21, 2, 1, 22, 23, 24, 2, 3, 3, 3});
  toy.loss(true);
  for (const Parameter& p : toy.bench().store().parameters()) {
    const double norm = dot(p.gradient, p.gradient);
    if (p.spec.name.starts_with("vision.") || p.spec.name.starts_with("connector.")) {
      EXPECT_EQ(norm, 0) << p.spec.name;
    } else if (p.spec.name == "embedding") {
      EXPECT_GT(norm, 0);
    }
  }
}

// What stages are cut by and what parameters are dealt by must be one numbering.
TEST(Multimodal, ParametersKnowTheirLinkOfTheChain) {
  for (const FeatureLayer features : {FeatureLayer::post_norm, FeatureLayer::penultimate}) {
    ModelConfig config = toy_model();
    config.vision.layers = 3;
    config.vision.features = features;
    ParameterStore store;
    const MultimodalModel model(store, config);
    const auto link = [&](const char* name) { return store.find(name)->spec.sharding.link; };
    const int active = features == FeatureLayer::post_norm ? 3 : 2;
    EXPECT_EQ(link("vision.positions"), 0);
    EXPECT_EQ(link("vision.layers.1.attention.wq"), 2);
    // A block that does not run is kept with the tower's output.
    EXPECT_EQ(link("vision.layers.2.attention.wq"), 3);
    EXPECT_EQ(link("vision.ln_post.weight"), active + 1);
    EXPECT_EQ(link("connector.readout.w1"), active + 2);
    EXPECT_EQ(link("embedding"), active + 3);
    EXPECT_EQ(link("decoder.layers.0.attention.wq"), active + 4);
    EXPECT_EQ(link("decoder.layers.1.feed_forward.experts.3.w_down"), active + 5);
    EXPECT_EQ(link("decoder.final_norm"), active + 6);
    EXPECT_EQ(store.find("embedding")->spec.sharding.tied_link, active + 7);
    EXPECT_EQ(model.chain().size(), active + 8);
    EXPECT_EQ(link_count(config), active + 8);

    const Workload work{.tokens = 100, .document_length = 10, .targets = 60, .tiles = 3};
    const std::vector<FlopCounts> links = count_link_flops(config, work);
    EXPECT_EQ(std::ssize(links), active + 8);
    // The head: three products of targets, hidden and vocabulary.
    EXPECT_EQ(links.back().training, 3.0 * 2 * 60 * 16 * 40);
    double sum = 0;
    for (const FlopCounts& flops : links) sum += flops.training;
    EXPECT_EQ(sum, count_flops(config, work).training);
  }
}

// With equal experts the gates (which sum to one) make the mixture the dense layer (mm15.md §8.4).
TEST(Multimodal, MixtureOfEqualExpertsIsTheDenseModel) {
  ModelConfig config = toy_model();
  ToyModel sparse(config);
  config.decoder.moe = {};
  ToyModel dense(config);
  for (Parameter& p : sparse.bench().store().parameters()) {
    std::string name = p.spec.name;
    const auto expert = name.find(".experts.");
    if (expert != std::string::npos)
      name = name.substr(0, expert) + name.substr(name.find('.', expert + 9));
    const Parameter* twin = dense.bench().store().find(name);
    if (p.spec.name.ends_with(".router")) continue;
    ASSERT_NE(twin, nullptr) << name;
    std::copy_n(twin->master.data<float>(), twin->master.numel(), p.master.data<float>());
  }
  sparse.loss(false);
  dense.loss(false);
  // Gates that sum to one within 1e-9 and a few fp32 roundings a layer apart.
  EXPECT_NEAR(sparse.cross_entropy(), dense.cross_entropy(), 1e-5 * dense.cross_entropy());
}

}  // namespace
}  // namespace orchard::testing
