// Ranks that train on devices learn what one of them learns alone, in every way of sharing the work.
// Run under mpirun.
#include <cmath>
#include <map>
#include <span>

#include "comm/nccl.h"
#include "tests/comm/find_nccl.h"
#include "tests/comm/ranks_test.h"
#include "tests/kernels/device_test.h"
#include "tests/train/toy_run.h"

namespace orchard::testing {
namespace {

enum class Transport { nccl, host };
enum class Toy { sparse, limited, dense };  // limited: sparse, with a capacity
enum class Stages { first, all_three };

struct Setting {
  const char* name;
  Layout layout;  // of two ranks
  Toy toy = Toy::sparse;
  Stages stages = Stages::first;
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

// Of the first stage alone, or of each of three. Every step uses what the optimizer made of those before.
constexpr std::int64_t steps_of(Stages stages) {
  return stages == Stages::first ? 4 : 2;
}

RunConfig run_of(const Setting& setting, const std::filesystem::path& set) {
  const std::int64_t steps = steps_of(setting.stages);
  RunConfig run = toy_run(set, steps);
  run.stages.front().optimizer = {.kind = setting.optimizer, .factor_threshold = 8};
  if (setting.stages == Stages::all_three) add_later_stages(run, steps);
  if (setting.toy == Toy::dense) run.model.decoder.moe = {};
  if (setting.toy == Toy::limited) run.model.decoder.moe.capacity_factor = 1;
  run.dtype = setting.dtype;
  return run;
}

class DeviceRanks : public DeviceTest<Setting> {
 protected:
  // What one rank learns, whatever the layout: settings that differ in nothing else share it.
  const Recorder& alone(const RunConfig& run, const std::filesystem::path& folder) {
    const Setting& s = parameter();
    static std::map<std::tuple<DeviceKind, Toy, Stages, OptimizerKind, DType, GpuArch>, Recorder>
        known;
    const auto [found, is_new] =
        known.try_emplace({kind(), s.toy, s.stages, s.optimizer, s.dtype, s.simt_arch});
    if (is_new) {
      const auto one = make_single_communicator();
      found->second = trained(run, stream().device(), *one, folder);
    }
    return found->second;
  }
  int place() const override { return session->world()->rank(); }
  SimtOptions simt_options() const override { return orchard::simt_options(parameter().simt_arch); }
};

TEST_P(DeviceRanks, LossesAreThoseOfOneRank) {
  const auto world = session->world();
  if (world->size() != 2) GTEST_SKIP() << "needs two ranks";
  FoundNccl nccl;
  if (parameter().transport == Transport::nccl) {
    nccl = find_nccl(kind(), world->size());
    if (!nccl.library) GTEST_SKIP() << nccl.absence;
  }
  const Scratch scratch;  // of this rank
  write_toy_training_set(scratch / "set", 20);
  RunConfig run = run_of(parameter(), scratch / "set");
  const Tolerance within = tolerance(run.dtype);
  Recorder expected;
  if (world->rank() == 0)
    expected = alone(run, scratch / "alone");  // whom alone the observer hears
  run.layout = parameter().layout;
  // As `orchard train` connects them; null: over the host.
  const auto ranks =
      nccl.library ? make_nccl_world(*world, {.device = stream().device(), .library = nccl.library})
                   : nullptr;
  // Later stages start from the checkpoint that rank 0 wrote.
  const SharedFolder shared(*world);
  const Recorder together =
      trained(run, stream().device(), ranks ? *ranks : *world, shared / "together");
  if (world->rank() == 0) {
    const auto expect_near = [](double value, double reference, double relative,
                                const StepEvent& at, const char* what) {
      EXPECT_NEAR(value, reference, relative * std::abs(reference)) << what << " of " << at.step;
    };
    const auto steps = static_cast<std::size_t>(steps_of(parameter().stages)) * run.stages.size();
    ASSERT_EQ(together.steps.size(), steps);
    ASSERT_EQ(expected.steps.size(), steps);
    for (std::size_t s = 0; s < steps; ++s) {
      const StepReport &own = together.steps[s].report, &wanted = expected.steps[s].report;
      expect_near(own.losses.loss, wanted.losses.loss, within.loss, expected.steps[s], "loss");
      expect_near(own.losses.balance_loss, wanted.losses.balance_loss, within.other,
                  expected.steps[s], "balance");
      expect_near(own.losses.z_loss, wanted.losses.z_loss, within.other, expected.steps[s],
                  "z-loss");
      expect_near(own.gradient_norm, wanted.gradient_norm, within.other, expected.steps[s],
                  "gradient norm");
    }
    ASSERT_EQ(together.validations.size(), expected.validations.size());
    for (std::size_t v = 0; v < expected.validations.size(); ++v) {
      EXPECT_NEAR(together.validations[v].report.loss, expected.validations[v].report.loss,
                  within.loss * expected.validations[v].report.loss);
    }
  }
  world->barrier();
}

// Each layout with dense and sparse toys, which experts need, in all stages and on both architectures.
// Optimizers and transports come once or twice among them. Here, every layout with sparse toys.
constexpr Setting settings[] = {
    {.name = "data_over_the_host", .layout = {}, .transport = Transport::host},
    {.name = "tensor", .layout = {.tensor = 2}, .optimizer = OptimizerKind::adafactor},
    {.name = "expert_three_stages", .layout = {.expert = 2}, .stages = Stages::all_three},
    {.name = "pipeline", .layout = {.pipeline = 2}},
};
// The others: on the emulator, which takes its time, in tests/run.sh --full.
constexpr Setting more_settings[] = {
    {.name = "data", .layout = {}},
    {.name = "data_adafactor", .layout = {}, .optimizer = OptimizerKind::adafactor},
    {.name = "tensor_dense", .layout = {.tensor = 2}, .toy = Toy::dense},
    {.name = "tensor_three_stages", .layout = {.tensor = 2}, .stages = Stages::all_three},
    {.name = "expert", .layout = {.expert = 2}},
    {.name = "expert_capacity", .layout = {.expert = 2}, .toy = Toy::limited},
    {.name = "pipeline_three_stages", .layout = {.pipeline = 2}, .stages = Stages::all_three},
    {.name = "pipeline_dense", .layout = {.pipeline = 2}, .toy = Toy::dense},
};

constexpr Setting on_sm90(const char* name, Layout layout, Toy toy) {
  return {.name = name,
          .layout = layout,
          .toy = toy,
          .dtype = DType::bf16,
          .simt_arch = GpuArch::sm_90a};
}
constexpr Setting more_sm90_settings[] = {
    on_sm90("sm_90a_expert", {.expert = 2}, Toy::sparse),
    on_sm90("sm_90a_tensor_dense", {.tensor = 2}, Toy::dense),
    on_sm90("sm_90a_pipeline", {.pipeline = 2}, Toy::sparse),
};

std::string name_of_test(const ::testing::TestParamInfo<std::tuple<DeviceKind, Setting>>& test) {
  return std::string(name_of(std::get<0>(test.param))) + "_" + std::get<1>(test.param).name;
}

INSTANTIATE_TEST_SUITE_P(Toys, DeviceRanks,
                         ::testing::Combine(every_gpu(), ::testing::ValuesIn(settings)),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(DISABLED_MoreToys, DeviceRanks,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(more_settings)),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(DISABLED_MoreToysOnSm90, DeviceRanks,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(more_sm90_settings)),
                         name_of_test);
#ifdef ORCHARD_HAS_CUDA
INSTANTIATE_TEST_SUITE_P(MoreToys, DeviceRanks,
                         ::testing::Combine(::testing::Values(DeviceKind::cuda),
                                            ::testing::ValuesIn(more_settings)),
                         name_of_test);
// GPUs also without NCCL, and two ranks on one.
std::vector<Setting> over_the_host() {
  std::vector<Setting> all;
  const auto add = [&](std::span<const Setting> some) {
    for (Setting setting : some) {
      if (setting.transport == Transport::host) continue;  // among the others
      setting.transport = Transport::host;
      all.push_back(setting);
    }
  };
  add(settings);
  add(more_settings);
  return all;
}
INSTANTIATE_TEST_SUITE_P(ToysOverTheHost, DeviceRanks,
                         ::testing::Combine(::testing::Values(DeviceKind::cuda),
                                            ::testing::ValuesIn(over_the_host())),
                         name_of_test);
#endif

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
