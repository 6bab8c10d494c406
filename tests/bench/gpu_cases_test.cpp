// bench_gpu's cases, gone through without a GPU: an operation that nobody times, a shape of the presets that
// is missing, or operands that an operation refuses show here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "bench/gpu/gpu_bench.h"
#include "bench/gpu/presets.h"
#include "models/multimodal.h"
#include "tests/bench/recording_device.h"

namespace orchard::testing {
namespace {

using bench::GpuBench;
using bench::GpuCase;
using bench::Preset;
using bench::TileBatch;

// Where the vendor's library takes every operand that ours take.
class RecordingBench final : public GpuBench {
 public:
  RecordingBench() : GpuBench(std::make_unique<RecordingDevice>()) {}
  std::vector<Recorded> take() { return static_cast<RecordingDevice&>(device()).take(); }

  bool run_library(const Gemm& op) override { return checked(op); }
  bool run_library(const DepthwiseConv3x3Forward& op) override { return checked(op); }
  bool run_library(const DepthwiseConv3x3BackwardInput& op) override { return checked(op); }

 private:
  template <class Operation>
  bool checked(const Operation& op) {
    run(stream(), op);
    return true;
  }
};

struct Ran {
  GpuCase test;
  std::vector<Recorded> operations;  // of one call
};

class GpuCases : public ::testing::Test {
 protected:
  // Every case prepared and called once, and its reference.
  static void SetUpTestSuite() {
    RecordingBench bench;
    for (const GpuCase& test : bench::gpu_cases()) {
      try {
        const GpuCase::Calls calls = test.prepare(bench);
        bench.take();
        calls.ours();
        ran_.push_back({test, bench.take()});
        if (calls.reference) calls.reference();
      } catch (const std::exception& error) {
        refused_.push_back(test.name + ": " + error.what());
      }
      bench.forget_operands();
    }
    peak_bytes_ = bench.device().statistics().peak_bytes;
  }

  static std::set<std::string> operations() {
    std::set<std::string> names;
    for (const Ran& ran : ran_)
      for (const Recorded& recorded : ran.operations) names.insert(recorded.operation);
    return names;
  }
  static std::set<std::string> shapes() {
    std::set<std::string> texts;
    for (const Ran& ran : ran_)
      for (const Recorded& recorded : ran.operations) texts.insert(recorded.text());
    return texts;
  }

  static inline std::vector<Ran> ran_;
  static inline std::vector<std::string> refused_;
  static inline std::int64_t peak_bytes_ = 0;
};

TEST_F(GpuCases, HaveOperandsThatTheirOperationsTake) {
  EXPECT_THAT(refused_, ::testing::IsEmpty());
  for (const Ran& ran : ran_) EXPECT_EQ(ran.operations.size(), 1u) << ran.test.name;
}

TEST_F(GpuCases, HaveANameEachThatAFilterFinds) {
  std::set<std::string> names;
  for (const Ran& ran : ran_) EXPECT_TRUE(names.insert(ran.test.name).second) << ran.test.name;
  const auto found = bench::gpu_cases("gemm/30b.ffn_up.forward");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].name, "gemm/30b.ffn_up.forward/8192x23552x7168");
}

// One of 24 GB runs them all, with what a driver and the libraries take.
TEST_F(GpuCases, FitIntoTheMemoryOfASmallGpu) {
  EXPECT_LT(peak_bytes_, std::int64_t{20} << 30);
}

// Those that the kernels' own sources register for a GPU.
std::set<std::string> registered_operations() {
  std::set<std::string> names;
  const std::regex registration(R"(table\.add<\s*(\w+)\s*>)");
  for (const auto& file : std::filesystem::recursive_directory_iterator(ORCHARD_KERNELS)) {
    if (file.path().extension() != ".cu") continue;
    std::stringstream text;
    text << std::ifstream(file.path()).rdbuf();
    const std::string source = text.str();
    for (std::sregex_iterator it(source.begin(), source.end(), registration), end; it != end; ++it)
      names.insert((*it)[1]);
  }
  return names;
}

TEST_F(GpuCases, RunEveryOperationOfAGpu) {
  std::set<std::string> untimed = registered_operations();
  EXPECT_GT(untimed.size(), 50u);
  for (const std::string& timed : operations()) untimed.erase(timed);
  EXPECT_THAT(untimed, ::testing::IsEmpty());
}

TEST_F(GpuCases, CountTheWorkThatTheOperandsOfTheirProductsSay) {
  int products = 0;
  for (const Ran& ran : ran_) {
    for (const Recorded& recorded : ran.operations) {
      if (recorded.flops == 0) continue;
      ++products;
      EXPECT_EQ(ran.test.flops, recorded.flops) << ran.test.name;
      EXPECT_EQ(ran.test.bytes, recorded.bytes) << ran.test.name;
    }
  }
  EXPECT_GT(products, 100);
}

// One pass of a preset's training, with every kind of layer, at the rows that bench_gpu times.
std::vector<Recorded> recorded_pass(const Preset& preset, const TileBatch& pictures) {
  RecordingDevice device;
  const auto stream = device.make_stream();
  ModelConfig config = preset.model;
  config.vision.side = pictures.side;
  config.vision.layers = 1;
  config.decoder.layers = 2;  // the second is sparse where one is
  config.recompute = Recompute::none;
  ParameterStore store;
  MultimodalModel model(store, config);
  store.allocate(device, *stream, DType::bf16);
  model.prepare(device, *stream);
  Arena arena(device);
  const auto words = [&](std::int64_t count) { return arena.allocate(DType::i32, {count}); };
  const std::int64_t tokens = preset.tokens(), targets = preset.targets();
  const DeviceBatch batch{
      .rows = tokens,
      .sequences = Preset::sequences,
      .sources = words(tokens),
      .positions = words(tokens),
      .document_offsets = words(Preset::sequences + 1),
      .sequence_offsets = words(Preset::sequences + 1),
      .real_rows = words(Preset::sequences),
      .target_rows = words(targets),
      .target_ids = words(targets),
      .targets = targets,
      .tiles = pictures.tiles,
      .patches = arena.allocate(DType::bf16, {pictures.tiles, pictures.grid * pictures.grid,
                                              config.vision.patch_values()}),
      .tower_rows = pictures.tower_rows(),
      .tile_offsets = words(pictures.tiles + 1)};
  Pass pass{.stream = *stream, .arena = arena, .batch = batch};
  MultimodalModel::Saved saved;
  model.forward(pass, saved);
  model.backward(pass, saved);
  return device.take();
}

// The later stages' linear layers differ from the first one's in the number of rows alone, and are not
// timed.
bool is_timed_of_later_stages(const Recorded& recorded) {
  return recorded.operation != "Gemm" && recorded.operation != "ColumnSum";
}

TEST_F(GpuCases, CoverEveryShapeOfATrainingPassOfThePresets) {
  const std::set<std::string> timed = shapes();
  for (const Preset& preset : bench::presets()) {
    for (const TileBatch& pictures : preset.pictures) {
      const bool first_stage = pictures.side == preset.pictures[0].side;
      std::set<std::string> missing;
      for (const Recorded& recorded : recorded_pass(preset, pictures)) {
        if (!first_stage && !is_timed_of_later_stages(recorded)) continue;
        if (!timed.count(recorded.text())) missing.insert(recorded.text());
      }
      EXPECT_THAT(missing, ::testing::IsEmpty())
          << preset.name << " with tiles of " << pictures.side << " pixels";
    }
  }
}

}  // namespace
}  // namespace orchard::testing
