// The program as its users meet it: exit codes, messages, and ranks that end together.
#include "tests/launch/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/atomic_file.h"
#include "tests/data/scratch.h"

namespace orchard {
namespace {

using orchard::testing::orchard_alone;
using orchard::testing::orchard_on_two_ranks;
using orchard::testing::Outcome;
using orchard::testing::run_shell;
using orchard::testing::Scratch;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Program, EveryCommandHasHelp) {
  const Outcome all = orchard_alone("--help");
  EXPECT_EQ(all.code, 0);
  for (const std::string command :
       {"train", "pack", "eval", "generate", "score", "inspect", "plan"}) {
    EXPECT_THAT(all.output, HasSubstr("  " + command + " "));
    const Outcome outcome = orchard_alone(command + " --help");
    EXPECT_EQ(outcome.code, 0) << command;
    EXPECT_THAT(outcome.output, HasSubstr("usage: orchard " + command));
  }
}

TEST(Program, ConfigurationErrorsHaveACodeOfTheirOwn) {
  const Outcome unknown_command = orchard_alone("trian");
  EXPECT_EQ(unknown_command.code, 78);
  EXPECT_THAT(unknown_command.output, HasSubstr("did you mean train?"));
  const Outcome unknown_option = orchard_alone("train --recipie tiny");
  EXPECT_EQ(unknown_option.code, 78);
  EXPECT_THAT(unknown_option.output, HasSubstr("did you mean --recipe?"));
  // An abbreviation that fits only one option is still not that option.
  EXPECT_EQ(orchard_alone("train --rec tiny --dry-run").code, 78);
  EXPECT_EQ(orchard_alone("train").code, 78);
  EXPECT_EQ(orchard_alone("inspect /nowhere").code, 78);
}

TEST(Program, OtherErrorsDoNot) {
  const Scratch folder;
  write_file(folder / "broken.h5", "no HDF5 file");
  EXPECT_EQ(orchard_alone("inspect " + (folder / "broken.h5").string()).code, 1);
}

TEST(Program, ADryRunPrintsValuesAndOrigins) {
  const Outcome outcome =
      run_shell("ORCHARD_RUN_MICRO_BATCH=4 " ORCHARD_PROGRAM
                " train --recipe tiny-moe --seed 9 --set decoder.layers=5 --dry-run");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("# ORCHARD_RUN_MICRO_BATCH\n"));
  EXPECT_THAT(outcome.output, HasSubstr("# --seed\n"));
  EXPECT_THAT(outcome.output, HasSubstr("# command line\n"));
  EXPECT_THAT(outcome.output, HasSubstr("# tiny-moe.ini:"));
  EXPECT_THAT(outcome.output, HasSubstr("model: "));
}

TEST(Program, PlansPipelines) {
  const Outcome all = orchard_alone("plan --stages 4 --micro-batches 8 --memory-limit 4");
  EXPECT_EQ(all.code, 0) << all.output;
  for (const char* row : {"gpipe              1        33         9   72.7%           8  over",
                          "zb-v               2      25.5         0   94.1%           4\n"})
    EXPECT_THAT(all.output, HasSubstr(row));
  EXPECT_EQ(count(all.output, "over the limit"), 2u) << all.output;

  const Scratch folder;
  const std::string svg = (folder / "timeline.svg").string();
  const std::string zb_v = "plan --schedule zb-v --stages 2 --micro-batches 3 ";
  const Outcome one = orchard_alone(zb_v + "--blocks 2x1,2,6x2 --ranks 4 --tp 2 --svg " + svg);
  EXPECT_EQ(one.code, 0) << one.output;
  EXPECT_THAT(one.output, AllOf(HasSubstr("blocks 0-2, 7-8"), HasSubstr("rank 3 (pp1 dp0 tp1 | ")));
  EXPECT_THAT(run_shell("head -c 4 " + svg).output, HasSubstr("<svg"));

  const std::pair<std::string, std::string> wrong[] = {
      {"--schedule zbv", "did you mean zb-v?"},
      {zb_v + "--chunks 3", "zb-v has 2 chunks a rank, not 3"},
      {zb_v + "--blocks 1,2x", "must be COST or COUNTxCOST"},
      {zb_v + "--blocks 1,2,3", "3 blocks cannot be cut into 4 stages"},
      {zb_v + "--forward -1", "--forward -1: must not be negative"},
      {zb_v + "--memory-limit 1", "more than the limit 1"},
      {zb_v + "--ranks 5", "the nearest possible layout of 5 ranks is"},
      {zb_v + "--ranks 4 --order tp-pp", "each once, as in tp-ep-dp-pp"},
  };
  for (const auto& [arguments, message] : wrong) {
    const Outcome outcome = orchard_alone(arguments[0] == '-' ? "plan " + arguments : arguments);
    EXPECT_EQ(outcome.code, 78) << arguments;
    EXPECT_THAT(outcome.output, HasSubstr(message)) << arguments;
  }
}

TEST(Program, RanksFailTogetherWithOneMessage) {
  const Outcome outcome = orchard_on_two_ranks("train --recipe tiny --set run.seed=x --dry-run");
  EXPECT_EQ(outcome.code, 78);
  EXPECT_EQ(count(outcome.output, "run.seed = x (command line)"), 1u) << outcome.output;
  // Far above what ending takes, far below what a rank left waiting would.
  EXPECT_LT(outcome.seconds, 60);
}

TEST(Program, ARankThatFailsAloneEndsTheOthers) {
  const Scratch folder;
  write_file(folder / "start.sh",
             "#!/bin/sh\n"
             "[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && export ORCHARD_RUN_SEED=x\n"
             "exec " ORCHARD_PROGRAM " train --recipe tiny --dry-run\n");
  const Outcome outcome = run_shell(
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -n 2 --oversubscribe "
      "--bind-to none sh " +
      (folder / "start.sh").string());
  EXPECT_EQ(outcome.code, 78);
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("rank 1: "), HasSubstr("ORCHARD_RUN_SEED")));
  EXPECT_LT(outcome.seconds, 60);
}

}  // namespace
}  // namespace orchard
