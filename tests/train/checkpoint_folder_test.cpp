#include "train/checkpoint_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

using ::testing::ElementsAre;

class CheckpointFolderTest : public ::testing::Test {
 protected:
  CheckpointFolderTest() : checkpoints_(scratch_ / "") {}

  void touch(const std::filesystem::path& path) {
    std::filesystem::create_directories(checkpoints_.folder());
    std::ofstream(path) << "x";
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(checkpoints_.folder()))
      names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

  Scratch scratch_;
  CheckpointFolder checkpoints_;
};

TEST_F(CheckpointFolderTest, NamesSortAsTheyAreWritten) {
  EXPECT_EQ(checkpoints_.at_step(2, 40).filename(), "stage2-step00000040.h5");
  EXPECT_EQ(checkpoints_.final_of(3).filename(), "stage3.h5");
  EXPECT_EQ(checkpoints_.folder().filename(), "checkpoints");
}

TEST_F(CheckpointFolderTest, IsEmptyBeforeTheFirstCheckpoint) {
  EXPECT_TRUE(checkpoints_.empty());  // not even the folder exists
  touch(checkpoints_.folder() / "notes.txt");
  touch(checkpoints_.folder() / "stage1.h5.tmp");  // a write that was cut off
  touch(checkpoints_.folder() / "stage1-step00000004.h5.tmp");
  touch(checkpoints_.folder() / "stage.h5");
  touch(checkpoints_.folder() / "stage1-step.h5");
  touch(checkpoints_.folder() / "my-stage1.h5");
  EXPECT_TRUE(checkpoints_.empty());
  EXPECT_EQ(checkpoints_.latest(), std::nullopt);
}

TEST_F(CheckpointFolderTest, TheNewestIsTheFurthestNotTheLastWritten) {
  touch(checkpoints_.at_step(1, 200));
  touch(checkpoints_.at_step(1, 90));
  EXPECT_EQ(checkpoints_.latest(), checkpoints_.at_step(1, 200));
  touch(checkpoints_.at_step(1, 100'000'000));  // longer than its padding
  EXPECT_EQ(checkpoints_.latest(), checkpoints_.at_step(1, 100'000'000));
  touch(checkpoints_.final_of(1));
  EXPECT_EQ(checkpoints_.latest(), checkpoints_.final_of(1));
  touch(checkpoints_.at_step(2, 1));
  EXPECT_EQ(checkpoints_.latest(), checkpoints_.at_step(2, 1));
  touch(checkpoints_.at_step(10, 1));  // not in alphabetical order
  EXPECT_EQ(checkpoints_.latest(), checkpoints_.at_step(10, 1));
}

TEST_F(CheckpointFolderTest, PruningKeepsTheNewestAndEveryEnd) {
  touch(checkpoints_.final_of(1));
  touch(checkpoints_.at_step(1, 10));
  for (const std::int64_t step : {20, 5, 15, 10}) touch(checkpoints_.at_step(2, step));
  touch(checkpoints_.final_of(2));
  checkpoints_.prune(2, 2);
  EXPECT_THAT(names(), ElementsAre("stage1-step00000010.h5", "stage1.h5", "stage2-step00000015.h5",
                                   "stage2-step00000020.h5", "stage2.h5"));
  checkpoints_.prune(2, 5);
  EXPECT_EQ(names().size(), 5u);
  checkpoints_.prune(2, 0);
  EXPECT_THAT(names(), ElementsAre("stage1-step00000010.h5", "stage1.h5", "stage2.h5"));
}

}  // namespace
}  // namespace orchard::testing
