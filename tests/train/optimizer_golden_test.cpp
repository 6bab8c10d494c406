// Three steps of AdamW and AdaFactor against PyTorch's and transformers' own, run in fp64 by
// tests/goldens/make_optimizer_golden.py.
#include "tests/goldens/optimizer_golden.h"

#include <map>
#include <memory>
#include <optional>

#include "parallel/gradient_norm.h"
#include "tests/goldens/golden_checks.h"
#include "train/optimizer.h"

namespace orchard::testing {
namespace {

// Three updates with a few fp32 roundings of 6e-8 each.
constexpr double tolerance = 1e-6;
constexpr double learning_rates[] = {1e-2, 3e-2, 2e-2};

class OptimizerGolden : public ::testing::Test {
 protected:
  OptimizerGolden() : device_(make_cpu_device()), stream_(device_->make_stream()) {
    const auto declare = [&](const char* name, Shape shape, WeightDecay decay) {
      store_.declare({.name = name, .shape = shape, .weight_decay = decay});
    };
    declare("matrix", {12, 20}, WeightDecay::yes);
    declare("small_matrix", {4, 20}, WeightDecay::yes);
    declare("kernel", {5, 3, 3}, WeightDecay::yes);
    declare("scale", {17}, WeightDecay::no);
    store_.allocate(*device_, *stream_, DType::f32);
    golden::fill_parameters(store_);
  }

  // Runs three steps and compares all parameters and all state, which the goldens must name.
  void expect_after_three_steps(const OptimizerConfig& config,
                                std::span<const golden::Values> goldens) {
    optimizer_.emplace(*device_, *stream_, store_, config);
    const ConstTensor all = store_.flat_gradients();
    const auto alone = make_single_communicator();
    GradientNorm norm(*device_, *alone, {{0, all.numel()}});
    for (int step = 1; step <= 3; ++step) {
      for (Parameter& p : store_.parameters()) set_gradient(p, step);
      norm.measure(*stream_, all, optimizer_->clip_norm());
      optimizer_->update(*stream_, learning_rates[step - 1], norm.scale(), step);
      stream_->synchronize();
      EXPECT_NEAR(norm.value(), golden::gradient_norms[step - 1], 1e-6 * norm.value());
    }
    std::map<std::string, ConstTensor> results;
    for (const Parameter& p : store_.parameters()) results[p.spec.name] = p.master;
    for (const Optimizer::NamedShard& s : optimizer_->state()) results[s.name] = s.tensor;
    EXPECT_EQ(results.size(), goldens.size());
    for (const golden::Values& golden : goldens) {
      const std::string name(golden.name);
      ASSERT_TRUE(results.contains(name)) << "no parameter or state is called " << name;
      golden::expect_close(results[name], golden.values, tolerance, name);
    }
  }

 private:
  static void set_gradient(Parameter& p, int step) {
    const std::string name = "gradient " + std::to_string(step) + " of " + p.spec.name;
    const std::int64_t row = p.gradient.numel() / p.spec.shape[0];
    for (std::int64_t i = 0; i < p.gradient.numel(); ++i) {
      p.gradient.data<float>()[i] = golden::value(name, i) *
                                    static_cast<float>(std::pow(4, step - 2)) *
                                    static_cast<float>(1 + i / row % 3);
    }
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  ParameterStore store_;
  std::optional<Optimizer> optimizer_;
};

TEST_F(OptimizerGolden, AdamWWithClippedNormIsPyTorchs) {
  expect_after_three_steps({.kind = OptimizerKind::adamw}, golden::adamw);
}

TEST_F(OptimizerGolden, AdaFactorFactoredAndNotIsTransformers) {
  expect_after_three_steps({.kind = OptimizerKind::adafactor, .factor_threshold = 8},
                           golden::adafactor);
}

}  // namespace
}  // namespace orchard::testing
