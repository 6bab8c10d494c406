// A toy of every kind (dense, sparse, with pictures, three stages) learns on each device what it
// learns on the CPU.
#include <cmath>

#include "tests/kernels/device_test.h"
#include "tests/train/toy_run.h"

namespace orchard::testing {
namespace {

struct Setting {
  const char* name;
  DType dtype = DType::f32;
  bool sparse = true;
  Recompute recompute = Recompute::none;
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.name;
}

// Sums in another order differ by some 1e-7 of their terms, and four steps of an optimizer that
// divides by the gradient's own size carry a difference on: 1e-4 leaves room for that. In bf16
// each activation is rounded at 2^-8 and devices round different sums; over the toy's few hundred
// target tokens the mean loss averages that to below 1 %.
double tolerance(DType dtype) {
  return dtype == DType::f32 ? 1e-4 : 1e-2;
}

// AdamW on whole tiles, then AdaFactor on larger ones, fixed and dynamic: the position tables are
// resized on the way.
RunConfig three_stages(const std::filesystem::path& set, const Setting& setting) {
  RunConfig run = toy_run(set, 4);
  for (const int number : {2, 3}) {
    StageConfig stage = toy_stage(number, 4);
    stage.side = 12;
    stage.tiling.mode = number == 2 ? TilingMode::fixed : TilingMode::dynamic;
    stage.tiling.min_tiles = 1;
    stage.tiling.max_tiles = 2;
    stage.optimizer.kind = OptimizerKind::adafactor;
    stage.optimizer.factor_threshold = 8;
    run.stages.push_back(stage);
  }
  run.dtype = setting.dtype;
  run.model.recompute = setting.recompute;
  if (!setting.sparse) run.model.decoder.moe = {};
  return run;
}

Recorder trained(RunConfig run, Device& device, const std::filesystem::path& folder) {
  run.run_folder = folder;
  const auto alone = make_single_communicator();
  Recorder recorder;
  train(run, {}, device, *alone, recorder);
  return recorder;
}

class DeviceTraining : public DeviceTest<Setting> {};

TEST_P(DeviceTraining, LossesAreThoseOfTheCpu) {
  const Scratch scratch;
  write_toy_training_set(scratch / "set");
  const RunConfig run = three_stages(scratch / "set", parameter());
  const auto cpu = make_cpu_device({.threads = 1});
  const Recorder expected = trained(run, *cpu, scratch / "cpu");
  const Recorder actual = trained(run, stream().device(), scratch / "device");
  ASSERT_EQ(actual.steps.size(), expected.steps.size());
  ASSERT_EQ(actual.steps.size(), 12u);
  const auto expect_near = [&](double value, double reference, const StepEvent& at,
                               const char* what) {
    EXPECT_NEAR(value, reference, tolerance(run.dtype) * std::abs(reference))
        << what << " of stage " << at.stage << " step " << at.step;
  };
  for (std::size_t s = 0; s < expected.steps.size(); ++s) {
    const StepEvent &a = actual.steps[s], &e = expected.steps[s];
    expect_near(a.report.losses.loss, e.report.losses.loss, e, "loss");
    expect_near(a.report.losses.balance_loss, e.report.losses.balance_loss, e, "balance loss");
    expect_near(a.report.losses.z_loss, e.report.losses.z_loss, e, "z-loss");
    // A norm is dominated by few large gradients, whose rounding does not average out.
    EXPECT_NEAR(a.report.gradient_norm, e.report.gradient_norm,
                10 * tolerance(run.dtype) * e.report.gradient_norm)
        << "stage " << e.stage << " step " << e.step;
  }
  ASSERT_EQ(actual.validations.size(), expected.validations.size());
  for (std::size_t v = 0; v < expected.validations.size(); ++v) {
    EXPECT_NEAR(actual.validations[v].report.loss, expected.validations[v].report.loss,
                tolerance(run.dtype) * expected.validations[v].report.loss);
  }
}

constexpr Setting settings[] = {
    {.name = "dense", .sparse = false},
    {.name = "sparse"},
    {.name = "sparse_recomputed", .recompute = Recompute::blocks},
    {.name = "dense_bf16", .dtype = DType::bf16, .sparse = false},
    {.name = "sparse_bf16", .dtype = DType::bf16},
};

INSTANTIATE_TEST_SUITE_P(Toys, DeviceTraining,
                         ::testing::Combine(every_gpu(), ::testing::ValuesIn(settings)),
                         [](const auto& test) {
                           return std::string(name_of(std::get<0>(test.param))) + "_" +
                                  std::get<1>(test.param).name;
                         });

}  // namespace
}  // namespace orchard::testing
