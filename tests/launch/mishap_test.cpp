// What goes wrong in real runs: each ends with a message that names the thing, and harms nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <optional>
#include <thread>

#include "comm/flight_recorder.h"
#include "data/atomic_file.h"
#include "kernels/embedding/embedding.h"
#include "launch/job.h"
#include "launch/options.h"
#include "tests/data/corpus.h"
#include "tests/data/scratch.h"
#include "tests/launch/program.h"
#include "train/checkpoint_folder.h"
#include "train/observers.h"
#include "train/run_lock.h"
#include "train/trainer.h"

namespace orchard::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* recipe = R"([vision]
layers = 0
[decoder]
layers = 2
hidden = 16
ffn = 32
heads = 2
kv_heads = 1
head_dim = 8
[stage1]
steps = 4
global_batch = 2
sequence_length = 64
side = 14
mixture = equal
peak_lr = 1e-3
[stage2]
steps = 2
global_batch = 2
sequence_length = 64
side = 14
mixture = equal
peak_lr = 1e-3
)";

// Far above what ending takes, far below what a rank left waiting would.
constexpr double soon = 60;

class Mishap : public ::testing::Test {
 protected:
  Mishap() {
    write_file(scratch_ / "small.ini", recipe);
    fs::create_directories(scratch_ / "corpus/text");
    std::ofstream text(scratch_ / "corpus/text/words.txt");
    for (const std::string& sentence : some_sentences(200)) text << sentence << "\n\n";
    text.close();
    const Outcome packed = orchard_alone("pack " + (scratch_ / "corpus").string() + " --out " +
                                         (scratch_ / "set").string() + " --vocabulary 340");
    require(packed.code == 0, "{}", packed.output);
  }

  std::string arguments(const std::string& more = {}) const {
    return "train --recipe " + (scratch_ / "small.ini").string() + " --training-set " +
           (scratch_ / "set").string() + " --run-folder " + run_.string() + " " + more;
  }
  Outcome train(const std::string& more = {}) const { return orchard_alone(arguments(more)); }

  Scratch scratch_;
  fs::path run_ = scratch_ / "run";
};

TEST_F(Mishap, ADamagedShardEndsTheRun) {
  auto bytes = read_file(scratch_ / "set/shard-00000.h5");
  bytes[bytes.size() / 2] ^= 1;
  write_file(scratch_ / "set/shard-00000.h5", bytes);
  for (const Outcome& outcome : {train(), orchard_on_two_ranks(arguments())}) {
    EXPECT_EQ(outcome.code, 1);
    EXPECT_THAT(outcome.output, AllOf(HasSubstr("shard-00000.h5 is damaged"),
                                      HasSubstr("orchard pack"), Not(HasSubstr("bad sample"))));
    EXPECT_LT(outcome.seconds, soon);
    fs::remove_all(run_);
  }
}

TEST_F(Mishap, AStageAloneNeedsTheOneBefore) {
  const Outcome outcome = train("--stage 2");
  EXPECT_EQ(outcome.code, 78);
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("run/checkpoints/stage1.h5"), HasSubstr("--init")));
  EXPECT_FALSE(fs::exists(run_));
  EXPECT_EQ(train("--stage 1").code, 0);
  EXPECT_EQ(train("--stage 2 --resume").code, 0);
}

TEST_F(Mishap, ARefusedResumeLeavesTheRunAsItWas) {
  ASSERT_EQ(train("--stop-after 2").code, 0);
  const std::string before = read_text(run_ / "resolved.ini");
  struct {
    const char *change, *reason;
  } cases[] = {{"--set decoder.layers=3", "decoder.layers = 2, not 3"},
               {"--set moe.experts=2 --set moe.every=2", "moe.experts = 0, not 2"},
               {"--seed 9", "seed 1"},
               {"--set stage1.global_batch=4", "global batch of 4"},
               {"--set stage1.steps=2", "stage1.steps = 2"}};
  for (const auto& [change, reason] : cases) {
    const Outcome outcome = train(std::string("--resume ") + change);
    EXPECT_NE(outcome.code, 0) << change;
    EXPECT_THAT(outcome.output, AllOf(HasSubstr("stage1-step00000002.h5"), HasSubstr(reason)));
    EXPECT_EQ(read_text(run_ / "resolved.ini"), before) << change;
  }
  fs::resize_file(run_ / "checkpoints/stage1-step00000002.h5", 1000);
  const Outcome cut = train("--resume");
  EXPECT_NE(cut.code, 0);
  EXPECT_THAT(cut.output, AllOf(HasSubstr("stage1-step00000002.h5"), HasSubstr("remove it")));
}

TEST_F(Mishap, AResumeSaysWhatItChanges) {
  ASSERT_EQ(train("--stop-after 2").code, 0);
  EXPECT_THAT(train("--resume --stop-after 1 --set stage1.peak_lr=2e-3").output,
              HasSubstr("changed since the run began: stage1.peak_lr = 0.002, was 0.001"));
  EXPECT_THAT(train("--resume --set stage1.peak_lr=2e-3").output, Not(HasSubstr("changed")));
  EXPECT_THAT(train("--resume").output, HasSubstr("nothing is left to train"));
}

TEST_F(Mishap, ASecondRunInTheFolderIsRefused) {
  fs::create_directories(run_);
  {
    const RunLock lock(run_);
    const Outcome outcome = train();
    EXPECT_EQ(outcome.code, 1);
    EXPECT_THAT(outcome.output, AllOf(HasSubstr(fmt::format("process {} on", ::getpid())),
                                      HasSubstr(run_.string()), HasSubstr("--run-folder")));
    EXPECT_FALSE(fs::exists(run_ / "resolved.ini"));
  }
  EXPECT_EQ(train("--stop-after 1").code, 0);
}

TEST_F(Mishap, ALossThatIsNotFiniteEndsAllRanksWithoutACheckpoint) {
  // Shards are open on every rank when MPI pulls the plug: HDF5 must neither crash nor hang at exit.
  const std::string diverging = arguments("--set stage1.peak_lr=1e38 --set stage1.weight_decay=0");
  for (const Outcome& outcome :
       {run_shell(ORCHARD_PROGRAM " " + diverging), orchard_on_two_ranks(diverging)}) {
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    EXPECT_THAT(outcome.output, AllOf(HasSubstr("stage 1 step "), HasSubstr("learning rate"),
                                      Not(HasSubstr("Segmentation"))));
    EXPECT_LT(outcome.seconds, soon);
    EXPECT_FALSE(fs::exists(run_ / "checkpoints/stage1.h5"));
    fs::remove_all(run_);
  }
}

// What becomes of the job when rank 1 gets this signal in the middle of training, and the newest
// checkpoint that there was when it did.
struct Signalled {
  Outcome outcome;
  fs::path checkpoint;
  std::vector<std::uint8_t> bytes;
};
Signalled signalled(const fs::path& run, const std::string& arguments, int signal) {
  Signalled result;
  std::jthread sender([&](const std::stop_token& ended) {
    while (!ended.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const std::optional<fs::path> newest = CheckpointFolder(run).latest();
      if (!newest) continue;
      result.checkpoint = *newest;
      result.bytes = read_file(*newest);
      ::kill(FlightFile(flight_file(run / "rings", 1)).pid(), signal);
      return;
    }
  });
  result.outcome = orchard_on_two_ranks(arguments);
  sender.request_stop();
  sender.join();
  return result;
}

TEST_F(Mishap, ARankThatDiesOrStopsIsNamedAndLeavesWholeCheckpoints) {
  const std::string endless = arguments(
      "--set run.checkpoint_every=20 --set run.keep_checkpoints=1000 --set run.hang_timeout=10 "
      "--set stage1.steps=1000000");
  struct {
    int signal;
    const char* how;
  } cases[] = {{SIGKILL, "ended without a word"}, {SIGSTOP, "gives no sign of life"}};
  for (const auto& [signal, how] : cases) {
    const auto [outcome, checkpoint, bytes] = signalled(run_, endless, signal);
    EXPECT_NE(outcome.code, 0);
    EXPECT_LT(outcome.seconds, soon);
    EXPECT_THAT(outcome.output, AllOf(HasSubstr("orchard: rank 1 (pp0 dp1 tp0 |"), HasSubstr(how),
                                      ContainsRegex("[0-9]+ of group (dp|world)")));
    ASSERT_FALSE(bytes.empty()) << "there was no checkpoint to be harmed";
    EXPECT_TRUE(read_file(checkpoint) == bytes) << checkpoint << " has changed";
    const std::optional<fs::path> last = CheckpointFolder(run_).latest();
    ASSERT_TRUE(last);
    EXPECT_EQ(orchard_alone("inspect --verify " + last->string()).code, 0);
    const Outcome resumed =
        train(fmt::format("--resume --stage 1 --stop-after 1 {}",
                          endless.substr(endless.find("--set run.checkpoint"))));
    EXPECT_EQ(resumed.code, 0) << resumed.output;
    EXPECT_THAT(orchard_alone("inspect " + flight_file(run_ / "rings", 1).string()).output,
                AllOf(HasSubstr("rank 1"), HasSubstr("reduce-scatter"), HasSubstr("world")));
    fs::remove_all(run_);
  }
}

// The other rank would wait for its answers for ever.
TEST_F(Mishap, ARankThatStopsWhileAModelIsAskedIsNamed) {
  ASSERT_EQ(orchard_on_two_ranks(arguments("--stage 1")).code, 0);
  {
    std::ofstream requests(scratch_ / "requests");
    for (int i = 0; i < 200'000; ++i) requests << R"({"tokens": [1, 30, 31, 32]})" << '\n';
  }
  const std::string score =
      fmt::format("score --run-folder {} --input {} --tp 2 --set run.hang_timeout=10",
                  run_.string(), (scratch_ / "requests").string());
  const auto rings = [&] {
    for (const auto& entry : fs::directory_iterator(run_))
      if (entry.path().filename().string().starts_with("rings-asking-")) return entry.path();
    return fs::path();
  };
  std::jthread sender([&](const std::stop_token& ended) {
    while (!ended.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const fs::path ring = flight_file(rings(), 1);
      if (!FlightFile::is_one(ring)) continue;
      const FlightFile file(ring);
      if (file.read().operations.size() < 1000) continue;
      ::kill(file.pid(), SIGSTOP);
      return;
    }
  });
  const Outcome outcome = orchard_on_two_ranks(score);
  EXPECT_NE(outcome.code, 0);
  EXPECT_LT(outcome.seconds, soon);
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("orchard: rank 1 (pp0 dp0 tp1 |"), HasSubstr("gives no sign of life"),
                    ContainsRegex("[0-9]+ of group tp")));
  // The rings of those that failed stay; those of a command that ended are gone.
  ASSERT_TRUE(fs::exists(rings() / "verdict.txt"));
  fs::remove_all(rings());
  const Outcome answered = orchard_on_two_ranks(
      fmt::format("generate a --plain --tokens 2 --tp 2 --run-folder {}", run_.string()));
  EXPECT_EQ(answered.code, 0) << answered.output;
  EXPECT_EQ(rings(), fs::path());
}

constexpr const char* poisoned_flag = "--poisoned-rank";
constexpr int poisoned_rank = 2;

// The embedding's gradient of one rank gets a NaN in the third step.
void poison(OperationTable& operations) {
  static void (*original)(Stream&, const EmbeddingBackward&);
  original = operations.find<EmbeddingBackward>();
  operations.add<EmbeddingBackward>([](Stream& stream, const EmbeddingBackward& op) {
    static int calls = 0;
    original(stream, op);
    if (++calls == 3) op.d_table.data<float>()[0] = std::nanf("");
  });
}

// What `orchard train` is to a rank, with such a device on one of them.
int train_poisoned(const std::string& recipe_path) {
  return run_job([&](Job& job) {
    const RunConfig run = ResolvedRun({.recipe = recipe_path}).config();
    const int rank = job.ranks().rank();
    job.set_name(Mesh(job.ranks().size(), run.layout).name(rank));
    const std::unique_ptr<Device> device = make_cpu_device({.threads = 1});
    if (rank == poisoned_rank) poison(device->operations());
    Observers silent;
    train(run, {}, *device, job.ranks(), silent);
    return 0;
  });
}

TEST_F(Mishap, ANaNInAGradientNamesItsRankAndParameterAndLeavesTheCheckpointBefore) {
  write_file(
      scratch_ / "poisoned.ini",
      fmt::format("[recipe]\nbase = {}\n[run]\ncheckpoint_every = 1\ntraining_set = "
                  "{}\nrun_folder = {}\n[layout]\ntp = 2\n",
                  (scratch_ / "small.ini").string(), (scratch_ / "set").string(), run_.string()));
  const Outcome outcome =
      run_on_ranks(4, fmt::format("{} {} {}", fs::read_symlink("/proc/self/exe").string(),
                                  poisoned_flag, (scratch_ / "poisoned.ini").string()));
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  EXPECT_LT(outcome.seconds, soon);
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("stage 1 step 3: the gradient norm of step 3 is"),
                    HasSubstr("that of embedding was not finite on rank 2 (pp0 dp1 tp0 |"),
                    ContainsRegex("before reduce-scatter [0-9]+ of group dp")));
  EXPECT_FALSE(fs::exists(run_ / "checkpoints/stage1-step00000003.h5"));
  const std::string last = (run_ / "checkpoints/stage1-step00000002.h5").string();
  EXPECT_EQ(orchard_alone("inspect --verify " + last).code, 0);
}

TEST_F(Mishap, AFileThatOutgrowsItsLimitIsAnErrorLikeAFullDisk) {
  // The checkpoint has 38 MB; the limit, in units of 512 bytes, is 20, since MPI has files too.
  const Outcome outcome = run_shell("ulimit -f 40000; " ORCHARD_PROGRAM " " +
                                    arguments("--set decoder.ffn=32768 --stage 1"));
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("stage1.h5"), HasSubstr("File too large")));
  EXPECT_TRUE(fs::is_empty(run_ / "checkpoints"));
}

TEST_F(Mishap, ARequestThatSaysSomethingElseIsRefused) {
  ASSERT_EQ(train("--stage 1").code, 0);
  const auto answer = [&](const std::string& request) {
    write_file(scratch_ / "requests", request + "\n");
    return orchard_alone("score --run-folder " + run_.string() + " --input " +
                         (scratch_ / "requests").string());
  };
  EXPECT_EQ(answer(R"({"tokens": [1, 2]})").code, 0);
  struct {
    const char *request, *reason;
  } cases[] = {{R"({"tokens": [1, 4294967297]})", "4294967297"},
               {R"({"tokens": [1, 2.5]})", "2.5"},
               {R"({"tokens": [1, -1]})", "-1"},
               {R"({"tokens": [1, 340]})", "340"},
               {R"({"tokens": "12"})", "no array"},
               {R"({"tokens": [1, 2], "image": "a.png"})", "image is unknown"},
               {R"([1, 2])", "not a request"},
               {R"({"tokens": [1, 2)", "not a request"}};
  for (const auto& [request, reason] : cases) {
    const Outcome outcome = answer(request);
    EXPECT_EQ(outcome.code, 1) << request;
    EXPECT_THAT(outcome.output, AllOf(HasSubstr("line 1 of the requests"), HasSubstr(reason)));
  }
}

}  // namespace

int mishap_main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == poisoned_flag) return train_poisoned(argv[2]);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::mishap_main(argc, argv);
}
