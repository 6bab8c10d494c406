// A layout changes how a step is computed, not what: losses and every parameter's gradient are
// those of one rank. One program of 8 ranks under mpirun builds meshes of all sizes from
// sub-communicators, several of them at a time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "comm/mpi.h"
#include "tests/parallel/faulty_communicator.h"
#include "tests/parallel/layout_harness.h"
#include "tests/parallel/toy_batches.h"

namespace orchard::testing {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<MpiSession> session;

// Enough heads for eight tensor ranks, and too few key-value heads for four.
ModelConfig dense_model() {
  ModelConfig config;
  config.vision = {.layers = 2, .width = 32, .heads = 8, .mlp_width = 48, .patch = 2, .side = 6};
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {.layers = 2,
                    .hidden = 24,
                    .ffn = 32,
                    .heads = 8,
                    .kv_heads = 2,
                    .head_dim = 8,
                    .vocabulary = 48,
                    .max_positions = 16};
  return config;
}

// Pictures next to text alone, padding, rows that nothing divides, a single token.
constexpr ToyShape shapes[] = {
    {.sequences = 2, .length = 13, .tiles = 1, .padding = 3},
    {.sequences = 1, .length = 1},
    {.sequences = 1, .length = 11, .tiles = 2},
    {.sequences = 2, .length = 7},
    {.sequences = 1, .length = 16, .padding = 15},
    {.sequences = 1, .length = 6, .tiles = 1},
    {.sequences = 1, .length = 3},
    {.sequences = 3, .length = 5, .padding = 1},
};

LayoutTask task_of(const std::string& name, const ModelConfig& model, ReplicaOptions options = {}) {
  LayoutTask task{.name = name, .model = model, .options = options};
  for (int step = 0; step < 4; ++step) {
    std::vector<MicroBatch>& batches = task.steps.emplace_back();
    for (const ToyShape& shape : shapes) {
      // A learner that sees everything twice is compared where its losses move.
      batches.push_back(
          toy_micro_batch(model, shape, fmt::format("{}.{}", step % 2, batches.size())));
    }
  }
  return task;
}

const LayoutOutcome& reference_of(const LayoutTask& task) {
  static std::map<std::string, LayoutOutcome> known;
  const auto [at, is_new] = known.try_emplace(task.name);
  if (is_new) {
    const auto alone = make_single_communicator();
    at->second = run_layout(task, ParallelContext(*alone, {}), nullptr);
  }
  return at->second;
}

struct Case {
  int ranks = 1;
  Layout layout;
  SequenceParallel sequence_parallel = SequenceParallel::yes;

  std::string to_string() const {
    return fmt::format("{} ranks, {}, sequence parallelism {}", ranks, layout.to_string(),
                       sequence_parallel == SequenceParallel::yes ? "on" : "off");
  }
};

// The ranks are cut into groups of `size`; this rank's.
std::unique_ptr<Communicator> group_of(Communicator& world, int size) {
  std::vector<int> places(static_cast<std::size_t>(size));
  std::iota(places.begin(), places.end(), world.rank() / size * size);
  return world.make_group(fmt::format("mesh-{}", size), places);
}

// Runs the cases, those of the same size next to each other.
void expect_same_everywhere(const LayoutTask& task, std::vector<Case> cases,
                            const LayoutTolerance& tolerance = {}) {
  const LayoutOutcome& reference = reference_of(task);
  const auto world = session->world();
  std::ranges::stable_sort(cases, {}, &Case::ranks);
  for (std::size_t first = 0; first < cases.size();) {
    const int size = cases[first].ranks;
    std::size_t last = first;
    while (last < cases.size() && cases[last].ranks == size) ++last;
    if (size <= world->size()) {
      const auto ranks = group_of(*world, size);
      const int groups = world->size() / size;
      for (std::size_t i = first + static_cast<std::size_t>(world->rank() / size); i < last;
           i += static_cast<std::size_t>(groups)) {
        const ParallelContext context(*ranks, cases[i].layout, cases[i].sequence_parallel);
        const LayoutOutcome outcome = run_layout(task, context, &reference);
        EXPECT_EQ(differences(outcome, reference, tolerance), "")
            << task.name << ", " << cases[i].to_string() << ", "
            << context.mesh().name(context.rank());
      }
    }
    first = last;
  }
  world->barrier();
}

TEST(Layouts, DataParallel) {
  expect_same_everywhere(task_of("dense", dense_model()), {{1}, {2}, {4}, {8}});
}

TEST(Layouts, TensorParallel) {
  std::vector<Case> cases;
  for (const SequenceParallel rows : {SequenceParallel::no, SequenceParallel::yes}) {
    for (const int tensor : {2, 4, 8}) {
      for (int data = 1; data * tensor <= 8; data *= 2)
        cases.push_back({data * tensor, {.tensor = tensor}, rows});
    }
  }
  expect_same_everywhere(task_of("dense", dense_model()), cases);
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  orchard::testing::session = std::make_unique<orchard::MpiSession>(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  // An exception ends this rank, and mpirun then ends those that wait for it.
  GTEST_FLAG_SET(catch_exceptions, false);
  const int result = RUN_ALL_TESTS();
  orchard::testing::session.reset();
  return result;
}
