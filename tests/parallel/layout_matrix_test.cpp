// Every layout, with whatever goes with it, learns what one rank learns: losses over four steps and
// every parameter's gradient. One program of 8 ranks under mpirun; meshes of fewer ranks run beside
// each other. Micro-batches are of every kind: ranks with pictures next to ranks with text alone,
// experts without a token, sequences of one token; with a capacity all are of one size, and messages of
// experts, too.
//
// The covering cases run everywhere; tests/run.sh --full runs all:
//   mpirun -n 8 layout_matrix_test --gtest_also_run_disabled_tests --gtest_filter='*Complete'
// LAYOUT_CASES=text leaves those with that text in their names.
#include "tests/parallel/layout_matrix.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <set>
#include <tuple>

#include "tests/comm/ranks_test.h"
#include "tests/parallel/shared_outcomes.h"

namespace orchard::testing {
namespace {

// What one rank makes of a task. In bf16 also what it makes of it in fp32, with the same choices of
// experts.
struct Reference {
  LayoutOutcome alone, exact;
};

Reference computed(const LayoutTask& task) {
  Reference reference;
  const auto alone = make_single_communicator();
  const ParallelContext ranks(*alone, {});
  LayoutTask plain = task;
  plain.options.experts = {};
  reference.alone = run_layout(plain, {.ranks = ranks});
  if (plain.options.dtype == DType::bf16) {
    plain.options.dtype = DType::f32;
    reference.exact = run_layout(plain, {.ranks = ranks, .reference = &reference.alone});
  }
  return reference;
}

// Of every task of the cases, by its name.
std::map<std::string, Reference> references_of(std::span<const MatrixCase> cases,
                                               Communicator& ranks) {
  std::map<std::string, LayoutTask> tasks;
  for (const MatrixCase& c : cases) {
    LayoutTask task = matrix_task(c);
    tasks.try_emplace(task.name, std::move(task));
  }
  std::map<std::string, Reference> references;
  int number = 0;
  for (const auto& [name, task] : tasks)
    if (number++ % ranks.size() == ranks.rank()) references[name] = computed(task);
  number = 0;
  for (const auto& [name, task] : tasks) {
    const int owner = number++ % ranks.size();
    share(ranks, owner, references[name].alone);
    share(ranks, owner, references[name].exact);
  }
  return references;
}

std::string differences_of(const MatrixCase& c, Communicator& ranks,
                           const std::map<std::string, Reference>& references) {
  const LayoutTask task = matrix_task(c);
  const auto& [alone, exact] = references.at(task.name);
  const ParallelContext context(ranks, c.layout(), c.rows(), c.stages());
  const LayoutOutcome outcome = run_layout(task, {.ranks = context, .reference = &alone});
  return task.options.dtype == DType::f32 ? differences(outcome, alone, {})
                                          : rounding_differences(outcome, alone, exact);
}

// Cases of as many ranks next to each other.
void run_cases(std::vector<MatrixCase> cases) {
  const std::size_t all = cases.size();
  if (const char* const part = std::getenv("LAYOUT_CASES"))
    std::erase_if(cases,
                  [&](const MatrixCase& c) { return c.name().find(part) == std::string::npos; });
  const auto world = session->world({.ranks_per_node = 2});
  if (world->rank() == 0) fmt::print("[ CASES    ] {} of {}\n", cases.size(), all);
  const auto references = references_of(cases, *world);
  std::ranges::stable_sort(cases, {}, &MatrixCase::ranks);
  for (std::size_t first = 0; first < cases.size();) {
    const int size = cases[first].ranks();
    std::size_t last = first;
    while (last < cases.size() && cases[last].ranks() == size) ++last;
    if (size <= world->size()) {
      const auto ranks = group_of(*world, size);
      const auto meshes = static_cast<std::size_t>(world->size() / size);
      const auto mesh = static_cast<std::size_t>(world->rank() / size);
      for (std::size_t i = first + mesh; i < last; i += meshes) {
        const auto start = std::chrono::steady_clock::now();
        EXPECT_EQ(differences_of(cases[i], *ranks, references), "") << cases[i].name();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        if (ranks->rank() == 0)
          fmt::print("[ CASE     ] {} of {} ranks ({:.2f} s)\n", cases[i].name(), size,
                     seconds.count());
      }
    }
    first = last;
  }
  world->barrier();
}

std::set<int> shown(const std::vector<Combination>& combinations) {
  std::set<int> pairs;
  for (const Combination& c : combinations)
    for (const int pair : pairs_of(c)) pairs.insert(pair);
  return pairs;
}

TEST(Covering, FewCombinationsShowEveryPair) {
  const std::vector<int> levels = {3, 2, 4, 2, 3, 2};
  const auto all = all_combinations(levels, [](const Combination& c) {
    return c[0] != 1 || c[2] == 0;  // some do not go together
  });
  const std::vector<Combination> few = covering(all, pairs_of);
  EXPECT_EQ(all.size(), 2u * (2 * 4 + 1) * 2 * 3 * 2);
  EXPECT_EQ(shown(few), shown(all));
  EXPECT_LE(few.size(), 24u);  // the largest two axes alone make 12
  EXPECT_EQ(covering(all, pairs_of), few);
}

// What the lists promise, counted without the features that made them.
TEST(Covering, TheMatrixHasEveryLayoutAndPair) {
  if (session->world()->rank() > 0) GTEST_SKIP() << "one rank counts for all";
  const std::vector<Combination> all = legal_combinations();
  const auto layout_of = [](const Combination& c) {
    return Combination(c.begin(), c.begin() + layout_axes);
  };
  // A layout and its schedule, with each level of the other axes.
  const auto with_options = [&](const auto& combinations) {
    std::set<std::tuple<Combination, int, std::size_t, int>> seen;
    for (const Combination& c : combinations)
      for (std::size_t axis = layout_axes; axis < c.size(); ++axis)
        seen.emplace(layout_of(c), c[schedule_axis], axis, c[axis]);
    return seen;
  };
  const auto layouts = [](const auto& combinations, int axes) {
    std::set<Combination> seen;
    for (const Combination& c : combinations) seen.emplace(c.begin(), c.begin() + axes);
    return seen;
  };
  const auto under_schedules = [&](const auto& combinations) {
    std::set<std::pair<Combination, int>> seen;
    for (const Combination& c : combinations)
      if (is_stage3_in_f32(c)) seen.emplace(layout_of(c), c[schedule_axis]);
    return seen;
  };
  std::vector<Combination> few, many;
  for (const MatrixCase& c : matrix_cases(MatrixSize::covering)) few.push_back(c.levels);
  for (const MatrixCase& c : matrix_cases(MatrixSize::complete)) many.push_back(c.levels);
  // 17 worlds of tp x dp x pp; dense ones, and 73 ways to fold experts into them; rows shared or not
  // wherever there are tensor ranks.
  EXPECT_EQ(layouts(all, rows_axis).size(), 17u + 73u);
  EXPECT_EQ(layouts(all, layout_axes).size(), 26u + 122u);
  EXPECT_EQ(layouts(few, rows_axis), layouts(all, rows_axis));
  EXPECT_EQ(shown(few), shown(all));
  EXPECT_LE(few.size(), 150u);
  // Pipelines have five schedules, others one.
  EXPECT_EQ(under_schedules(all).size(), 400u);
  EXPECT_EQ(under_schedules(many), under_schedules(all));
  EXPECT_EQ(with_options(many), with_options(all));
  fmt::print("[ CASES    ] covering {}, complete {} of {}\n", few.size(), many.size(), all.size());
  EXPECT_EQ(shown(many), shown(all));
}

TEST(LayoutMatrix, Covering) {
  run_cases(matrix_cases(MatrixSize::covering));
}

TEST(LayoutMatrix, DISABLED_Complete) {
  run_cases(matrix_cases(MatrixSize::complete));
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
