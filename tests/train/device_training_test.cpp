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
  GpuArch simt_arch = GpuArch::sm_80;
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.name;
}

// Sums in another order differ by some 1e-7 of their terms, and an optimizer that divides by the
// gradient's own size carries a difference on from step to step: 1e-4 leaves room for that. In bf16
// each activation is rounded at 2^-8 and devices round different sums; over the toy's few hundred
// target tokens the mean loss averages that to below 1 %.
double tolerance(DType dtype) {
  return dtype == DType::f32 ? 1e-4 : 1e-2;
}

// In bf16 a router's two best scores may change places between devices. The balance and z losses are
// means over tokens of what the routers chose: with the toy's few tokens, one that goes elsewhere
// moves them by a few per cent, and the cross-entropy hardly.
double router_tolerance(DType dtype) {
  return dtype == DType::f32 ? tolerance(dtype) : 5e-2;
}

constexpr std::int64_t stage_steps = 2;  // the emulator takes its time

// AdamW on whole tiles, then the later stages' own.
RunConfig three_stages(const std::filesystem::path& set, const Setting& setting) {
  RunConfig run = toy_run(set, stage_steps);
  add_later_stages(run, stage_steps);
  run.dtype = setting.dtype;
  // The attention of sm_90a is for heads of 64 and 128.
  if (setting.simt_arch == GpuArch::sm_90a) run.model.decoder.head_dim = 64;
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

class DeviceTraining : public DeviceTest<Setting> {
 protected:
  SimtOptions simt_options() const override {
    SimtOptions options = orchard::simt_options(parameter().simt_arch);
    if (parameter().simt_arch == GpuArch::sm_90a) options.counting = simt::Counting::on;
    return options;
  }
  // What the copy engine of sm_90 loaded.
  std::uint64_t tensor_load_bytes() const {
    return static_cast<SimtDevice&>(stream().device()).counters().tensor_load_bytes;
  }
};

TEST_P(DeviceTraining, LossesAreThoseOfTheCpu) {
  const Scratch scratch;
  write_toy_training_set(scratch / "set", 20);
  const RunConfig run = three_stages(scratch / "set", parameter());
  const auto cpu = make_cpu_device({.threads = 1});
  const Recorder expected = trained(run, *cpu, scratch / "cpu");
  const Recorder actual = trained(run, stream().device(), scratch / "device");
  ASSERT_EQ(actual.steps.size(), expected.steps.size());
  ASSERT_EQ(actual.steps.size(), 3u * stage_steps);
  const auto expect_near = [&](double value, double reference, double within, const StepEvent& at,
                               const char* what) {
    EXPECT_NEAR(value, reference, within * std::abs(reference))
        << what << " of stage " << at.stage << " step " << at.step;
  };
  const double close = tolerance(run.dtype), router_close = router_tolerance(run.dtype);
  for (std::size_t s = 0; s < expected.steps.size(); ++s) {
    const StepEvent &a = actual.steps[s], &e = expected.steps[s];
    const LossReport &own = a.report.losses, &wanted = e.report.losses;
    expect_near(own.loss, wanted.loss, close, e, "loss");
    expect_near(own.balance_loss, wanted.balance_loss, router_close, e, "balance loss");
    expect_near(own.z_loss, wanted.z_loss, router_close, e, "z-loss");
    // A norm is dominated by few large gradients, whose rounding does not average out.
    expect_near(a.report.gradient_norm, e.report.gradient_norm, 10 * close, e, "gradient norm");
  }
  ASSERT_EQ(actual.validations.size(), expected.validations.size());
  for (std::size_t v = 0; v < expected.validations.size(); ++v) {
    EXPECT_NEAR(actual.validations[v].report.loss, expected.validations[v].report.loss,
                close * expected.validations[v].report.loss);
  }
  if (parameter().simt_arch == GpuArch::sm_90a) {
    // Its kernels did run; fp32 has none of its own.
    EXPECT_EQ(tensor_load_bytes() > 0, run.dtype == DType::bf16);
  }
}

constexpr Setting settings[] = {
    {.name = "dense", .sparse = false},
    {.name = "sparse"},
    {.name = "sparse_bf16", .dtype = DType::bf16},
};
// On the emulator, which takes its time, in tests/run.sh --full.
constexpr Setting more_settings[] = {
    {.name = "sparse_recomputed", .recompute = Recompute::blocks},
    {.name = "dense_bf16", .dtype = DType::bf16, .sparse = false},
};

// A GPU has the kernels that it has; the emulator those that it is asked for.
constexpr Setting sm90_settings[] = {
    {.name = "sm_90a_sparse_bf16", .dtype = DType::bf16, .simt_arch = GpuArch::sm_90a},
};
constexpr Setting more_sm90_settings[] = {
    {.name = "sm_90a_sparse", .simt_arch = GpuArch::sm_90a},
    {.name = "sm_90a_dense_bf16",
     .dtype = DType::bf16,
     .sparse = false,
     .simt_arch = GpuArch::sm_90a},
};

std::string name_of_test(const ::testing::TestParamInfo<std::tuple<DeviceKind, Setting>>& test) {
  return std::string(name_of(std::get<0>(test.param))) + "_" + std::get<1>(test.param).name;
}

INSTANTIATE_TEST_SUITE_P(Toys, DeviceTraining,
                         ::testing::Combine(every_gpu(), ::testing::ValuesIn(settings)),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(DISABLED_MoreToys, DeviceTraining,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(more_settings)),
                         name_of_test);
#ifdef ORCHARD_HAS_CUDA
INSTANTIATE_TEST_SUITE_P(MoreToys, DeviceTraining,
                         ::testing::Combine(::testing::Values(DeviceKind::cuda),
                                            ::testing::ValuesIn(more_settings)),
                         name_of_test);
#endif
INSTANTIATE_TEST_SUITE_P(ToysOnSm90, DeviceTraining,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(sm90_settings)),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(DISABLED_MoreToysOnSm90, DeviceTraining,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(more_sm90_settings)),
                         name_of_test);

}  // namespace
}  // namespace orchard::testing
