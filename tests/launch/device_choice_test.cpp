// What the program does with --device: an emulated GPU trains, alone and on two ranks; a GPU that is not
// there is one clear line, and leaves no trace; so is NCCL that is missing between GPUs.
#include <gmock/gmock.h>

#include <sstream>

#include "data/atomic_file.h"
#include "launch/configuration_error.h"
#include "launch/device.h"
#include "tests/launch/program.h"
#include "tests/message_of.h"
#include "tests/train/toy_run.h"

namespace orchard::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* recipe = R"([vision]
layers = 1
width = 16
heads = 2
mlp_width = 32
patch = 4
[connector]
hidden = 8
depth = 1
out_side = 1
[decoder]
layers = 1
hidden = 16
ffn = 32
heads = 2
kv_heads = 1
head_dim = 8
[stage1]
steps = 2
global_batch = 2
sequence_length = 64
side = 8
tiling = whole
mixture = equal
peak_lr = 1e-3
)";

class DeviceChoice : public ::testing::Test {
 protected:
  DeviceChoice() {
    write_file(scratch_ / "small.ini", recipe);
    write_toy_training_set(scratch_ / "set", 20);
  }
  std::string train_on(const std::string& device) const {
    return "train --recipe " + (scratch_ / "small.ini").string() + " --training-set " +
           (scratch_ / "set").string() + " --run-folder " + run_.string() + " --device " + device;
  }
  bool trained() const { return fs::exists(run_ / "checkpoints/stage1.h5"); }

  Scratch scratch_;
  fs::path run_ = scratch_ / "run";
};

TEST_F(DeviceChoice, AnEmulatedGpuTrains) {
  const Outcome outcome = orchard_alone(train_on("simt --simt-arch sm_90a --dtype bf16"));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_TRUE(trained());
}

TEST_F(DeviceChoice, TwoEmulatedGpusTrainTogether) {
  const Outcome outcome = orchard_on_two_ranks(train_on("simt"));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_TRUE(trained());
  // They need nobody's leave to communicate.
  EXPECT_THAT(outcome.output, Not(HasSubstr("passes through host memory")));
}

TEST_F(DeviceChoice, DataOfGpusPassesThroughHostMemoryWhereAskedTo) {
  const Outcome outcome = orchard_on_two_ranks(train_on("simt --transport host"));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_TRUE(trained());
  EXPECT_THAT(outcome.output, HasSubstr("passes through host memory: --transport host"));
}

TEST(DeviceLinks, MissingNcclEndsTheRunAndRanksThatShareGpusDoWithoutIt) {
  const auto missing = []() -> std::shared_ptr<NcclLibrary> { fail("NCCL is missing: a reason"); };
  const auto links = [&](DeviceTransport asked, NodeRanks node) {
    return links_of_node(asked, node, missing);
  };
  EXPECT_THAT(message_of([&] { links(DeviceTransport::automatic, {.ranks = 2, .gpus = 2}); }),
              AllOf(HasSubstr("--device cuda"), HasSubstr("NCCL is missing: a reason"),
                    HasSubstr("--transport host")));
  EXPECT_THROW(links(DeviceTransport::automatic, {.ranks = 2, .gpus = 8}), ConfigurationError);
  EXPECT_EQ(links(DeviceTransport::automatic, {.ranks = 3, .gpus = 2}).detour,
            "3 ranks share the 2 GPUs of a node");
  EXPECT_EQ(links(DeviceTransport::host, {.ranks = 2, .gpus = 2}).detour, "--transport host");
  bool looked = false;
  const DeviceLinks found = links_of_node(DeviceTransport::automatic, {.ranks = 2, .gpus = 2}, [&] {
    looked = true;
    return std::shared_ptr<NcclLibrary>();
  });
  EXPECT_TRUE(looked);
  EXPECT_EQ(found.detour, "");
}

// With GPUs in the machine too: they are hidden.
TEST_F(DeviceChoice, AMissingGpuIsOneLineAndTheCpuStaysUsable) {
  ::setenv("CUDA_VISIBLE_DEVICES", "", 1);
  for (const bool two_ranks : {false, true}) {
    const Outcome outcome =
        two_ranks ? orchard_on_two_ranks(train_on("cuda")) : orchard_alone(train_on("cuda"));
    EXPECT_NE(outcome.code, 0);
    std::istringstream lines(outcome.output);
    int said = 0;
    for (std::string line; std::getline(lines, line);) {
      if (line.find("orchard: ") != 0) continue;
      ++said;
      EXPECT_THAT(line, AllOf(HasSubstr("--device cuda: "),
                              AnyOf(HasSubstr("built without CUDA"), HasSubstr("no NVIDIA driver"),
                                    HasSubstr("no GPU"))));
    }
    EXPECT_EQ(said, 1) << outcome.output;
    EXPECT_FALSE(fs::exists(run_));
  }
  EXPECT_EQ(orchard_alone(train_on("cpu")).code, 0);
  EXPECT_TRUE(trained());
  // A model that is only asked for its answers finds the GPU as little.
  const Outcome asked = orchard_alone("eval --run-folder " + run_.string() + " --device cuda");
  EXPECT_NE(asked.code, 0);
  EXPECT_THAT(asked.output, HasSubstr("--device cuda: "));
  ::unsetenv("CUDA_VISIBLE_DEVICES");
}

}  // namespace
}  // namespace orchard::testing
