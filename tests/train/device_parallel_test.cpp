// Ranks that train on devices learn what one of them learns alone, in every way of sharing the work.
// Run under mpirun.
#include <cmath>

#include "comm/emulated_nccl.h"
#include "comm/nccl.h"
#include "tests/comm/ranks_test.h"
#include "tests/kernels/device_test.h"
#include "tests/train/toy_run.h"

namespace orchard::testing {
namespace {

enum class Transport { nccl, host };

struct Setting {
  const char* name;
  Layout layout;  // of two ranks
  OptimizerKind optimizer = OptimizerKind::adamw;
  DType dtype = DType::f32;
  GpuArch simt_arch = GpuArch::sm_80;
  Transport transport = Transport::nccl;
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.name;
}

// Ranks only change the order in which numbers are summed. In bf16 the sums are rounded at 2^-8, and
// mean losses of a few hundred tokens average that to below 1 %; norms, and the means over tokens of
// what a router chose near a tie, less.
struct Tolerance {
  double loss, other;
};
constexpr Tolerance tolerance(DType dtype) {
  return dtype == DType::f32 ? Tolerance{1e-5, 1e-5} : Tolerance{1e-2, 5e-2};
}

Recorder trained(RunConfig run, Device& device, Communicator& ranks,
                 const std::filesystem::path& folder) {
  run.run_folder = folder;
  std::filesystem::create_directories(folder);  // as `orchard train` does
  Recorder recorder;
  train(run, {}, device, ranks, recorder);
  return recorder;
}

class DeviceRanks : public DeviceTest<Setting> {
 protected:
  // As `orchard train` connects them; null: over the host, as where there is no NCCL.
  std::unique_ptr<Communicator> connected(Communicator& world) const {
    if (kind() != DeviceKind::simt || parameter().transport == Transport::host) return nullptr;
    return make_nccl_world(world, {.device = stream().device(), .library = make_emulated_nccl()});
  }
  SimtOptions simt_options() const override { return orchard::simt_options(parameter().simt_arch); }
};

TEST_P(DeviceRanks, LossesAreThoseOfOneRank) {
  const auto world = session->world();
  if (world->size() != 2) GTEST_SKIP() << "needs two ranks";
  const Scratch scratch;  // of this rank: ranks agree without sharing a file
  write_toy_training_set(scratch / "set", 20);
  // Two steps: the second one uses what the first one's optimizer made.
  RunConfig run = toy_run(scratch / "set", 2);
  run.stages.front().optimizer = {.kind = parameter().optimizer, .factor_threshold = 8};
  run.dtype = parameter().dtype;
  const Tolerance within = tolerance(run.dtype);
  Recorder alone;
  if (world->rank() == 0) {  // whom alone the observer hears
    const auto one = make_single_communicator();
    alone = trained(run, stream().device(), *one, scratch / "alone");
  }
  run.layout = parameter().layout;
  const auto ranks = connected(*world);
  const Recorder together =
      trained(run, stream().device(), ranks ? *ranks : *world, scratch / "together");
  if (world->rank() == 0) {
    const auto expect_near = [](double value, double reference, double relative,
                                const StepEvent& at, const char* what) {
      EXPECT_NEAR(value, reference, relative * std::abs(reference)) << what << " of " << at.step;
    };
    ASSERT_EQ(together.steps.size(), 2u);
    ASSERT_EQ(alone.steps.size(), 2u);
    for (std::size_t s = 0; s < 2; ++s) {
      const StepReport &own = together.steps[s].report, &wanted = alone.steps[s].report;
      expect_near(own.losses.loss, wanted.losses.loss, within.loss, alone.steps[s], "loss");
      expect_near(own.losses.balance_loss, wanted.losses.balance_loss, within.other, alone.steps[s],
                  "balance");
      expect_near(own.losses.z_loss, wanted.losses.z_loss, within.other, alone.steps[s], "z-loss");
      expect_near(own.gradient_norm, wanted.gradient_norm, within.other, alone.steps[s],
                  "gradient norm");
    }
    ASSERT_EQ(together.validations.size(), alone.validations.size());
    for (std::size_t v = 0; v < alone.validations.size(); ++v) {
      EXPECT_NEAR(together.validations[v].report.loss, alone.validations[v].report.loss,
                  within.loss * alone.validations[v].report.loss);
    }
  }
  world->barrier();
}

constexpr Setting settings[] = {
    {.name = "data", .layout = {}},
    {.name = "data_over_the_host", .layout = {}, .transport = Transport::host},
    {.name = "data_adafactor", .layout = {}, .optimizer = OptimizerKind::adafactor},
    {.name = "tensor", .layout = {.tensor = 2}, .optimizer = OptimizerKind::adafactor},
    {.name = "expert", .layout = {.expert = 2}},
    {.name = "pipeline", .layout = {.pipeline = 2}},
};

constexpr Setting sm90_settings[] = {
    {.name = "sm_90a_tensor",
     .layout = {.tensor = 2},
     .dtype = DType::bf16,
     .simt_arch = GpuArch::sm_90a},
    {.name = "sm_90a_expert",
     .layout = {.expert = 2},
     .dtype = DType::bf16,
     .simt_arch = GpuArch::sm_90a},
};

std::string name_of_test(const ::testing::TestParamInfo<std::tuple<DeviceKind, Setting>>& test) {
  return std::string(name_of(std::get<0>(test.param))) + "_" + std::get<1>(test.param).name;
}

INSTANTIATE_TEST_SUITE_P(Toys, DeviceRanks,
                         ::testing::Combine(every_gpu(), ::testing::ValuesIn(settings)),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(ToysOnSm90, DeviceRanks,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(sm90_settings)),
                         name_of_test);

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
