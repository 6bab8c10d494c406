// Ranks that die, stop or dawdle, for real: this program starts itself under mpirun, as workers of
// which one misbehaves, and reads what the others say and what the rings tell.
#include "comm/watchdog.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <sstream>
#include <string_view>
#include <thread>

#include "comm/diagnosis.h"
#include "comm/emulated_nccl.h"
#include "comm/mpi.h"
#include "comm/nccl.h"
#include "kernels/device/device.h"
#include "kernels/simt/simt_device.h"
#include "tests/data/scratch.h"
#include "tests/run_shell.h"

namespace orchard::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int ranks = 4, culprit = 2;
constexpr std::int64_t good_steps = 5;  // of the culprit
constexpr std::chrono::milliseconds timeout{1500};
// Starting and ending four processes on a busy machine, far below a hang.
constexpr double soon = 60;

std::string name_of_rank(int rank) {
  return fmt::format("rank {} (dp{} tp{})", rank, rank / 2, rank % 2);
}

// Two groups at once, as training has them: pairs, and across pairs.
class Worker {
 public:
  Worker(MpiSession& session, const fs::path& folder)
      : world_(session.world()),
        watchdog_(
            *world_,
            {.folder = folder, .rank_name = name_of_rank(world_->rank()), .timeout = timeout}),
        device_(make_cpu_device({.threads = 1})),
        stream_(device_->make_stream()) {
    const int r = world_->rank();
    tp_ = world_->make_group("tp", std::vector<int>{r / 2 * 2, r / 2 * 2 + 1});
    dp_ = world_->make_group("dp", std::vector<int>{r % 2, r % 2 + 2});
  }

  // The culprit does `mishap` in place of a step.
  void work(std::int64_t steps, const std::function<void()>& mishap) {
    std::vector<float> values(1000, 1.0f);
    const Tensor buffer(values.data(), DType::f32, {1000}, DeviceKind::cpu);
    for (std::int64_t step = 0; step < steps; ++step) {
      if (step == good_steps && world_->rank() == culprit) mishap();
      tp_->all_reduce_sum(*stream_, buffer).wait(*stream_);
      dp_->all_reduce_sum(*stream_, buffer).wait(*stream_);
    }
  }

 private:
  std::unique_ptr<Communicator> world_;
  Watchdog watchdog_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Communicator> tp_, dp_;
};

// The same groups over emulated GPUs, with an operation of each that is captured and replayed.
class WorkerWithGraphs {
 public:
  WorkerWithGraphs(MpiSession& session, const fs::path& folder)
      : world_(session.world()),
        watchdog_(
            *world_,
            {.folder = folder, .rank_name = name_of_rank(world_->rank()), .timeout = timeout}) {
    const int r = world_->rank();
    groups_.push_back(gpus_->make_group("tp", std::vector<int>{r / 2 * 2, r / 2 * 2 + 1}));
    groups_.push_back(gpus_->make_group("dp", std::vector<int>{r % 2, r % 2 + 2}));
  }

  // Endless, but for the culprit, who falls asleep in place of a step.
  void work() {
    const Buffer buffer = device_->allocate(4000);
    const Tensor values = buffer.tensor(DType::f32, {1000});
    stream_->fill_zero(values);
    std::vector<std::unique_ptr<Graph>> graphs;
    for (const auto& group : groups_) {
      const auto add = [&] { group->all_reduce_sum(*stream_, values).wait(*stream_); };
      add();
      graphs.push_back(group->capture(*stream_, add));
    }
    for (std::int64_t step = 0;; ++step) {
      if (step == good_steps && world_->rank() == culprit)
        std::this_thread::sleep_for(std::chrono::hours(1));
      for (const auto& graph : graphs) graph->replay(*stream_);
      stream_->synchronize();
      for (const auto& group : groups_) group->progress();
    }
  }

 private:
  std::unique_ptr<Communicator> world_;
  Watchdog watchdog_;
  std::unique_ptr<SimtDevice> device_ = make_simt_device();
  std::unique_ptr<Stream> stream_ = device_->make_stream();
  std::unique_ptr<Communicator> gpus_ =
      make_nccl_world(*world_, {.device = *device_, .library = make_emulated_nccl()});
  std::vector<std::unique_ptr<Communicator>> groups_;
};

int run_worker(std::string_view mode, const fs::path& folder) {
  int argc = 0;
  char** argv = nullptr;
  MpiSession session(argc, argv);
  try {
    if (mode == "dawdle-over-a-graph") {
      WorkerWithGraphs(session, folder).work();
      return 0;
    }
    Worker worker(session, folder);
    if (mode == "die") {
      worker.work(1000, [] { ::raise(SIGKILL); });
    } else if (mode == "stop") {
      worker.work(1000, [] { ::raise(SIGSTOP); });
    } else if (mode == "dawdle") {
      worker.work(1000, [] { std::this_thread::sleep_for(std::chrono::hours(1)); });
    } else if (mode == "throw") {
      worker.work(1000, [] { fail("something of its own"); });
    } else if (mode == "slow") {
      // All the time it takes, but no more.
      worker.work(10, [] { std::this_thread::sleep_for(timeout / 2); });
    }
  } catch (const Error& error) {
    fmt::print(stderr, "a worker failed: {}\n", error.what());
    MpiSession::abort(7);
  }
  return 0;
}

class Ranks : public ::testing::Test {
 protected:
  Outcome run(std::string_view mode) const {
    return run_shell(
        fmt::format("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -n {} "
                    "--oversubscribe --bind-to none {} --worker {} {}",
                    ranks, fs::read_symlink("/proc/self/exe").string(), mode, folder_.string()));
  }
  FlightLog ring(int rank) const { return FlightFile(flight_file(folder_, rank)).read(); }
  std::string verdict() const {
    std::ifstream in(folder_ / "verdict.txt");
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

  // The step of the culprit after its good ones was tp's operation 5; nobody finished it.
  void expect_named(const Outcome& outcome, std::string_view how) const {
    EXPECT_NE(outcome.code, 0);
    EXPECT_LT(outcome.seconds, soon);
    EXPECT_THAT(outcome.output,
                AllOf(HasSubstr(name_of_rank(culprit)), HasSubstr(std::string(how)),
                      HasSubstr("its last operation, all-reduce 4 of group dp (4000 bytes f32)")));
    EXPECT_THAT(outcome.output, HasSubstr(verdict())) << "the same is kept beside the rings";
    EXPECT_NE(verdict(), "");
    EXPECT_EQ(ring(culprit).rank_name, name_of_rank(culprit));
  }
  // The neighbour of the culprit stands in the operation that that one never began.
  void expect_neighbour_waits() const {
    const FlightLog neighbour = ring(culprit + 1);
    ASSERT_NE(neighbour.under_way(), nullptr);
    EXPECT_EQ(neighbour.describe(*neighbour.under_way()),
              "all-reduce 5 of group tp (4000 bytes f32)");
  }

  Scratch scratch_;
  fs::path folder_ = scratch_ / "rings";
};

TEST_F(Ranks, ThatFinishLeaveRingsInGoodOrder) {
  const Outcome outcome = run("slow");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_EQ(outcome.output, "");
  EXPECT_EQ(verdict(), "");
  for (int r = 0; r < ranks; ++r) {
    const FlightLog log = ring(r);
    EXPECT_EQ(log.state, FlightState::finished);
    EXPECT_EQ(log.under_way(), nullptr);
    std::int64_t tp = 0, next = 0;
    for (const FlightOperation& operation : log.operations) {
      const FlightLog::Group& group = log.groups[static_cast<std::size_t>(operation.group)];
      if (group.name != "tp") continue;
      ++tp;
      EXPECT_EQ(group.members, (std::vector<int>{r / 2 * 2, r / 2 * 2 + 1}));
      EXPECT_EQ(operation.op, CommOp::all_reduce);
      EXPECT_EQ(operation.sequence, next++);
      EXPECT_LE(operation.enqueued_ns, operation.started_ns);
      EXPECT_LE(operation.started_ns, operation.ended_ns);
    }
    EXPECT_EQ(tp, 10);
  }
}

TEST_F(Ranks, ThatDieAreNamed) {
  expect_named(run("die"), "ended without a word");
  expect_neighbour_waits();
  const FlightLog dead = ring(culprit);
  EXPECT_EQ(dead.state, FlightState::running);
  EXPECT_EQ(dead.under_way(), nullptr);
}

// mpirun lets it run on before it ends it, so that the rings tell no more than the message.
TEST_F(Ranks, ThatStopAreNamed) {
  expect_named(run("stop"), "exists but gives no sign of life");
}

// Its process lives and shows it; only the operations of the others take too long.
TEST_F(Ranks, ThatDawdleAreNamed) {
  expect_named(run("dawdle"), "keeps the others waiting");
  expect_neighbour_waits();
}

// Of a graph's operations nothing is known but that one of them hangs; all of the group's ranks count the
// replays.
TEST_F(Ranks, ThatDoNotReplayAreNamed) {
  const Outcome outcome = run("dawdle-over-a-graph");
  EXPECT_NE(outcome.code, 0);
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr(name_of_rank(culprit)), HasSubstr("keeps the others waiting"),
                    HasSubstr("its last operation, graph 5 of group dp (4000 bytes u8)")));
  const FlightLog neighbour = ring(culprit + 1);
  ASSERT_NE(neighbour.under_way(), nullptr);
  EXPECT_EQ(neighbour.describe(*neighbour.under_way()), "graph 6 of group tp (4000 bytes u8)");
}

TEST_F(Ranks, ThatThrowSpeakForThemselves) {
  const Outcome outcome = run("throw");
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.output, HasSubstr("something of its own"));
  EXPECT_EQ(verdict(), "");
}

// Rings made by hand: who is to blame.
class Blame : public ::testing::Test {
 protected:
  Blame() {
    for (int r = 0; r < 3; ++r) {
      FlightLog log{.rank = r, .world = 3, .pid = 100 + r, .host = "node", .rank_name = ""};
      log.rank_name = fmt::format("rank {}", r);
      log.groups = {{.name = "dp", .members = {0, 1, 2}}, {.name = "pp", .members = {0, 1, 2}}};
      observed_.push_back({.log = std::move(log)});
    }
  }

  void begin(int rank, const FlightOperation& operation) {
    FlightLog& log = observed_[static_cast<std::size_t>(rank)].log;
    FlightLog::Group& group = log.groups[static_cast<std::size_t>(operation.group)];
    (operation.op == CommOp::exchange ? group.exchanges : group.collectives) =
        operation.sequence + 1;
    log.operations.push_back(operation);
  }

  std::optional<std::string> verdict(int observer, std::int64_t now) const {
    return diagnose(
        {.ranks = observed_, .observer = observer, .now_ns = now, .timeout_ns = 1'000'000'000});
  }

  std::vector<ObservedRank> observed_;
};

TEST_F(Blame, NobodyWhileAllIsInTime) {
  begin(0, {.op = CommOp::all_reduce, .sequence = 0, .enqueued_ns = 5});
  EXPECT_EQ(verdict(0, 900'000'000), std::nullopt);
  EXPECT_EQ(verdict(1, 5'000'000'000), std::nullopt) << "rank 1 waits for nothing";
  EXPECT_NE(verdict(0, 1'100'000'000), std::nullopt);
}

// Rank 0 waits for 1 and 2 in a collective; 1 waits for a message from 2; 2 computes.
TEST_F(Blame, FollowsTheChainToWhoWaitsForNobody) {
  begin(0, {.op = CommOp::all_reduce, .dtype = DType::f32, .sequence = 0, .enqueued_ns = 5});
  begin(1, {.op = CommOp::exchange, .group = 1, .peer = 2, .sequence = 3, .enqueued_ns = 4});
  const std::string text = verdict(0, 2'000'000'000).value();
  EXPECT_THAT(text, HasSubstr("rank 2 on node (process 102) keeps the others waiting"));
  EXPECT_THAT(text, HasSubstr("it has begun no operation"));
  EXPECT_THAT(text, HasSubstr("rank 0 has waited 2.0 s in all-reduce 0 of group dp"));
}

// Rank 2 stands before the pair's operation. Its neighbour's host has begun that, and dp's behind it, in
// which rank 0 waits for the neighbour's device.
TEST_F(Blame, LooksBehindHostsThatRunAheadOfTheirDevices) {
  observed_[1].log.groups.push_back({.name = "tp", .members = {1, 2}});
  observed_[2].log.groups.push_back({.name = "tp", .members = {1, 2}});
  observed_[0].log.groups[0].members = observed_[1].log.groups[0].members = {0, 1};
  begin(0, {.op = CommOp::graph, .dtype = DType::u8, .sequence = 0, .enqueued_ns = 5});
  begin(1, {.op = CommOp::graph, .dtype = DType::u8, .group = 2, .sequence = 0, .enqueued_ns = 5});
  begin(1, {.op = CommOp::graph, .dtype = DType::u8, .sequence = 0, .enqueued_ns = 6});
  for (const int observer : {0, 1}) {
    EXPECT_THAT(verdict(observer, 2'000'000'000).value(),
                HasSubstr("rank 2 on node (process 102) keeps the others waiting"));
  }
}

TEST_F(Blame, ACircleEnds) {
  begin(0, {.op = CommOp::exchange, .group = 1, .peer = 1, .sequence = 0, .enqueued_ns = 5});
  begin(1, {.op = CommOp::exchange, .group = 1, .peer = 0, .sequence = 0, .enqueued_ns = 5});
  EXPECT_TRUE(verdict(0, 2'000'000'000).has_value());
}

TEST_F(Blame, AnOperationThatAllHaveBegunIsNobodysFault) {
  for (int r = 0; r < 3; ++r)
    begin(r, {.op = CommOp::all_gather, .dtype = DType::bf16, .sequence = 0, .enqueued_ns = 5});
  EXPECT_THAT(verdict(1, 2'000'000'000).value(),
              HasSubstr("all-gather 0 of group dp (0 bytes bf16), which every rank of the group "
                        "has begun"));
}

// The log of rank 0 has not heard of the end of its operations, and waits in one that rank 2 never began.
TEST_F(Blame, WhatAllHaveBegunMayBeOver) {
  for (const int r : {0, 1})
    begin(r, {.op = CommOp::all_to_all, .group = 1, .sequence = 0, .enqueued_ns = 5});
  begin(2, {.op = CommOp::all_to_all, .group = 1, .sequence = 0, .enqueued_ns = 5, .ended_ns = 6});
  for (const int r : {0, 1}) begin(r, {.op = CommOp::graph, .sequence = 0, .enqueued_ns = 7});
  for (const int observer : {0, 1}) {
    const std::string text = verdict(observer, 2'000'000'000).value();
    EXPECT_THAT(text, HasSubstr("rank 2 on node (process 102) keeps the others waiting"));
    EXPECT_THAT(text, HasSubstr("in graph 0 of group dp"));
  }
}

TEST_F(Blame, DeathComesBeforeSilenceAndSilenceBeforeWaiting) {
  begin(0, {.op = CommOp::barrier, .sequence = 0, .enqueued_ns = 5});
  observed_[1].liveness = Liveness::silent;
  EXPECT_THAT(verdict(0, 10).value(),
              HasSubstr("rank 1 on node (process 101) exists but gives no sign"));
  observed_[2].liveness = Liveness::gone;
  EXPECT_THAT(verdict(0, 10).value(), HasSubstr("rank 2 on node (process 102) ended without"));
}

TEST(FlightRing, KeepsTheLastOperationsAndMovesIntoAFile) {
  const Scratch scratch;
  const fs::path file = scratch / "rank.ring";
  FlightRecorder recorder(1, 3);
  const std::vector<int> members{0, 2};
  const std::int32_t group = recorder.add_group("edp", members);
  const std::int64_t first = recorder.begin({.group = group, .sequence = 0});
  recorder.record_in(file, "rank 1 (dp1)");
  recorder.ended(first, 9);
  EXPECT_TRUE(FlightFile::is_one(file));
  EXPECT_EQ(FlightFile(file).read().operations.at(0).ended_ns, 9);
  const std::int64_t more = FlightRecorder::capacity + 7;
  for (std::int64_t i = 1; i <= more; ++i)
    recorder.ended(recorder.begin({.op = CommOp::all_to_all, .group = group, .sequence = i}), i);
  recorder.ended(first, 1000);  // long gone: must not touch who took its place
  recorder.set_state(FlightState::terminated);
  const FlightLog log = FlightFile(file).read();
  EXPECT_EQ(log.rank, 1);
  EXPECT_EQ(log.world, 3);
  EXPECT_EQ(log.pid, ::getpid());
  EXPECT_EQ(log.rank_name, "rank 1 (dp1)");
  EXPECT_EQ(log.state, FlightState::terminated);
  EXPECT_EQ(log.groups.at(0).members, members);
  EXPECT_EQ(log.groups.at(0).collectives, more + 1);
  ASSERT_EQ(log.operations.size(), static_cast<std::size_t>(FlightRecorder::capacity));
  for (std::int64_t i = 0; i < FlightRecorder::capacity; ++i) {
    const FlightOperation& operation = log.operations[static_cast<std::size_t>(i)];
    EXPECT_EQ(operation.sequence, more - FlightRecorder::capacity + 1 + i);
    EXPECT_EQ(operation.ended_ns, operation.sequence);
  }
  fs::resize_file(file, fs::file_size(file) - 1);
  EXPECT_THROW(FlightFile{file}, Error);
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "--worker")
    return orchard::testing::run_worker(argv[2], argv[3]);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
