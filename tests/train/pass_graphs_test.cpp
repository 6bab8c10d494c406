// Micro-batches that are replayed as graphs leave the bits that plain ones do, whatever their shapes
// and wherever memory moves between them. On one rank, and under mpirun on two that share the data.
#include <gmock/gmock.h>

#include <array>
#include <optional>
#include <set>

#include "comm/nccl.h"
#include "tests/comm/find_nccl.h"
#include "tests/comm/ranks_test.h"
#include "tests/kernels/device_test.h"
#include "tests/message_of.h"
#include "tests/models/toy_model.h"
#include "tests/parallel/toy_batches.h"
#include "tests/train/model_in_training.h"
#include "tests/train/replica.h"

namespace orchard::testing {
namespace {

using Counts = PassGraphs::Counts;

void expect_counts(const Counts& actual, const Counts& expected, const std::string& when) {
  EXPECT_EQ(actual.plain, expected.plain) << when << ": passes without graphs";
  EXPECT_EQ(actual.captured, expected.captured) << when << ": captures";
  EXPECT_EQ(actual.replayed, expected.replayed) << when << ": replays";
}

constexpr ToyShape with_pictures{.sequences = 2, .length = 13, .tiles = 2, .padding = 3};
constexpr ToyShape with_a_picture{.sequences = 2, .length = 13, .tiles = 1};
constexpr ToyShape of_text{.sequences = 2, .length = 13, .padding = 5};
constexpr ToyShape of_little_text{.sequences = 1, .length = 11};
constexpr ToyShape larger{.sequences = 48, .length = 16, .tiles = 3};

// Micro-batches of these shapes; what they hold follows from `name`.
std::vector<MicroBatch> make_step(const ModelConfig& model, std::span<const ToyShape> shapes,
                                  const std::string& name) {
  std::vector<MicroBatch> batches;
  for (ToyShape shape : shapes) {
    if (!model.has_vision()) shape.tiles = 0;
    batches.push_back(toy_micro_batch(model, shape, fmt::format("{}.{}", name, batches.size())));
  }
  return batches;
}

// The same documents of other tokens.
MicroBatch retold(MicroBatch batch, const ModelConfig& model, std::int64_t number) {
  constexpr std::int32_t first = 4;  // below are those that mean something
  const auto words = static_cast<std::int32_t>(model.decoder.vocabulary) - first;
  for (std::vector<std::int32_t>* tokens : {&batch.sources, &batch.targets})
    for (std::int32_t& token : *tokens)
      if (token >= first)
        token = first + (token - first + 7 * static_cast<std::int32_t>(number)) % words;
  return batch;
}

StepTotals totals_of(std::span<const MicroBatch> step) {
  StepTotals totals{.sizes = sizes_of(step)};
  for (const MicroBatch& batch : step) {
    totals.targets += batch.target_count;
    totals.sequences += batch.sequences;
    for (const std::int32_t rows : batch.real_rows) totals.real_rows += rows;
  }
  return totals;
}

// The sizes by which the uploader's tensors differ, said once more.
std::array<std::int64_t, 5> shape_of(const MicroBatch& batch) {
  const auto multiples = [](std::int64_t n, std::int64_t of) { return (n + of - 1) / of; };
  return {batch.sequences, batch.length, batch.tiles,
          multiples(std::ssize(batch.document_offsets), document_multiple),
          multiples(batch.target_count, target_multiple)};
}

// The same model twice, with graphs and without, in the same steps.
class Twins {
 public:
  Twins(Device& device, const ParallelContext& ranks, const ModelConfig& model, DType dtype)
      : model_(model),
        plain_(device, ranks, model, dtype),
        replayed_(device, ranks, model, dtype, {.graphs = Graphs::yes}) {}

  // With as many micro-batches for each data rank.
  void step(std::span<const MicroBatch> all) {
    SCOPED_TRACE(fmt::format("step {}", ++steps_));
    const ParallelContext& ranks = plain_.ranks();
    const std::size_t share = all.size() / static_cast<std::size_t>(ranks.mesh().data());
    const auto mine =
        all.subspan(static_cast<std::size_t>(ranks.coordinates().data) * share, share);
    const StepTotals totals = totals_of(all);
    const StepReport expected = plain_.step(mine, totals, 3e-3);
    const StepReport actual = replayed_.step(mine, totals, 3e-3);
    EXPECT_EQ(actual.losses.loss, expected.losses.loss);
    EXPECT_EQ(actual.losses.balance_loss, expected.losses.balance_loss);
    EXPECT_EQ(actual.losses.z_loss, expected.losses.z_loss);
    EXPECT_EQ(actual.losses.expert_load, expected.losses.expert_load);
    EXPECT_EQ(actual.losses.dropped, expected.losses.dropped);
    EXPECT_EQ(actual.gradient_norm, expected.gradient_norm);
    EXPECT_GT(actual.gradient_norm, 0);
    EXPECT_NE(actual.losses.loss, last_loss_) << "nothing changes";
    last_loss_ = actual.losses.loss;
  }
  void expect_same_state() {
    const auto expected = plain_.state();
    EXPECT_FALSE(expected.empty());
    EXPECT_TRUE(replayed_.state() == expected) << "weights or moments differ";
  }

  // Micro-batches of these shapes, which have the same documents in every step.
  std::vector<MicroBatch> of(std::span<const ToyShape> shapes) {
    std::vector<MicroBatch> all;
    for (const ToyShape& shape : shapes) {
      const std::string name = fmt::format("{} x {}", shape.sequences, shape.length);
      all.push_back(retold(toy_micro_batch(model_, shape, name), model_, told_++));
    }
    return all;
  }
  void step_of(std::span<const ToyShape> shapes) { step(of(shapes)); }

  ModelInTraining& replayed() { return replayed_; }
  Counts counts() { return replayed_.runner().graphs()->counts(); }

 private:
  ModelConfig model_;
  ModelInTraining plain_, replayed_;
  std::int64_t steps_ = 0, told_ = 0;
  double last_loss_ = 0;
};

struct Case {
  const char* name;
  DType dtype = DType::f32;
  std::int64_t experts = 4;  // 0: dense
  float capacity = 0;
  Recompute recompute = Recompute::none;
  bool pictures = true;
  GpuArch simt_arch = GpuArch::sm_80;

  ModelConfig model() const {
    ModelConfig model = toy_model();
    model.decoder.moe.experts = experts;
    model.decoder.moe.capacity_factor = capacity;
    model.recompute = recompute;
    if (!pictures) model.vision.layers = 0;
    // The attention of sm_90a is for heads of 64 and 128.
    if (simt_arch == GpuArch::sm_90a) model.decoder.head_dim = 64;
    return model;
  }
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

class PassGraphsTest : public DeviceTest<Case> {
 protected:
  void SetUp() override {
    if (session->world()->size() > 1) GTEST_SKIP() << "is of one rank";
    DeviceTest<Case>::SetUp();
    if (IsSkipped()) return;
    twins_.emplace(stream().device(), ranks_, parameter().model(), parameter().dtype);
  }
  SimtOptions simt_options() const override { return orchard::simt_options(parameter().simt_arch); }

  const std::unique_ptr<Communicator> world_ = make_single_communicator();
  const ParallelContext ranks_{*world_, {}};
  std::optional<Twins> twins_;
};

// Totals, and so the scales of the losses, change from step to step, and in the third the number of
// micro-batches.
TEST_P(PassGraphsTest, ReplaysGiveTheBitsOfPlainPasses) {
  constexpr ToyShape shapes[] = {with_pictures, of_text, with_pictures, with_a_picture};
  constexpr std::int64_t steps = 4;
  std::set<std::array<std::int64_t, 5>> seen;
  for (std::int64_t s = 1; s <= steps; ++s) {
    const auto batches =
        make_step(parameter().model(), std::span(shapes).first(s == 3 ? 3 : 4), std::to_string(s));
    const Counts before = twins_->counts();
    twins_->step(batches);
    std::int64_t first = 0;
    for (const MicroBatch& batch : batches) first += seen.insert(shape_of(batch)).second;
    const Counts after = twins_->counts();
    EXPECT_EQ(after.plain - before.plain, first) << "step " << s;
    EXPECT_EQ(after.captured + after.replayed - before.captured - before.replayed,
              std::ssize(batches) - first)
        << "step " << s;
    if (s > 2) {
      EXPECT_GT(after.replayed, before.replayed) << "step " << s;
    }
  }
  twins_->expect_same_state();
}

constexpr Case cases[] = {
    {.name = "dense", .experts = 0},
    {.name = "dense_bf16", .dtype = DType::bf16, .experts = 0},
    {.name = "text", .experts = 0, .pictures = false},
    {.name = "sparse"},
    {.name = "sparse_bf16", .dtype = DType::bf16},
    {.name = "capacity", .capacity = 1},
    {.name = "capacity_bf16_recomputed",
     .dtype = DType::bf16,
     .capacity = 1,
     .recompute = Recompute::blocks},
    {.name = "sparse_recomputed", .recompute = Recompute::blocks},
};

// Fewer, since the emulator takes its time; in tests/run.sh --full also with the kernels of sm_90a.
constexpr Case emulated_cases[] = {{.name = "sparse"},
                                   {.name = "capacity_bf16_recomputed",
                                    .dtype = DType::bf16,
                                    .capacity = 1,
                                    .recompute = Recompute::blocks}};
constexpr Case more_emulated_cases[] = {
    {.name = "sm_90a_sparse_bf16", .dtype = DType::bf16, .simt_arch = GpuArch::sm_90a}};

std::string name_of_test(const ::testing::TestParamInfo<std::tuple<DeviceKind, Case>>& test) {
  return fmt::format("{}_{}", name_of(std::get<0>(test.param)), std::get<1>(test.param).name);
}

INSTANTIATE_TEST_SUITE_P(Toys, PassGraphsTest,
                         ::testing::Combine(::testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                                            ::testing::ValuesIn(cases)),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(ToysOnTheEmulator, PassGraphsTest,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(emulated_cases)),
                         name_of_test);
INSTANTIATE_TEST_SUITE_P(DISABLED_MoreToysOnTheEmulator, PassGraphsTest,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(more_emulated_cases)),
                         name_of_test);

// ---- memory that moves, shapes that come and go --------------------------------------------

using PassGraphsInMemory = PassGraphsTest;

// What a graph refers to is where it was, or it is recorded anew: stale addresses would show in the
// bits, on the emulator as accesses to freed memory.
TEST_P(PassGraphsInMemory, WhatHasMovedIsCapturedAnew) {
  // Micro-batches of one size are another shape than the same beside others.
  constexpr ToyShape few[] = {of_text, of_little_text}, grown[] = {larger, of_text, of_little_text};
  const auto change = [&](std::span<const ToyShape> shapes, const Counts& expected,
                          const char* when) {
    const Counts before = twins_->counts();
    twins_->step_of(shapes);
    const Counts after = twins_->counts();
    expect_counts({.plain = after.plain - before.plain,
                   .captured = after.captured - before.captured,
                   .replayed = after.replayed - before.replayed},
                  expected, when);
  };
  twins_->step_of(few);
  twins_->step_of(few);  // the first step's end may have made the workspace grow
  change(few, {.replayed = 2}, "warm");
  const Arena& arena = twins_->replayed().runner().arena();
  const std::int64_t growths = arena.growths();

  change(grown, {.plain = 1, .captured = 2}, "the arena grew");
  EXPECT_GT(arena.growths(), growths) << "the larger micro-batch had room";
  change(few, {.replayed = 2}, "as before");

  // More than any operation here asks for.
  constexpr std::size_t plenty = std::size_t{64} << 20;
  Stream& replayed = twins_->replayed().stream();
  const std::int64_t workspaces = replayed.device().statistics().workspace_growths;
  replayed.workspace(plenty);
  ASSERT_EQ(replayed.device().statistics().workspace_growths, workspaces + 1);
  change(few, {.captured = 2}, "the workspace grew");
  twins_->expect_same_state();
}

TEST_P(PassGraphsInMemory, ARoutingFromElsewhereIsNotReplayed) {
  const auto batches = make_step(parameter().model(), std::span(&of_text, 1), "routing");
  const RoutingReplay none;  // of a model without routers
  for (int i = 0; i < 3; ++i)
    twins_->replayed().runner().accumulate(batches, totals_of(batches), {&none, 1});
  expect_counts(twins_->counts(), {}, "plain");
}

INSTANTIATE_TEST_SUITE_P(Dense, PassGraphsInMemory,
                         ::testing::Combine(every_device(), ::testing::Values(cases[0])),
                         name_of_test);

// Those that were used least recently go, and are then plain again.
TEST(PassGraphsOfManyShapes, KeepsTheLastOnes) {
  if (session->world()->size() > 1) GTEST_SKIP() << "is of one rank";
  const auto device = make_cpu_device({.threads = 1});
  const auto world = make_single_communicator();
  const ParallelContext ranks(*world, {});
  Twins twins(*device, ranks, Case{.name = "text", .experts = 0, .pictures = false}.model(),
              DType::f32);
  constexpr auto most = static_cast<std::int64_t>(PassGraphs::most_shapes);
  std::vector<ToyShape> shapes;  // the largest first, so that memory does not grow later
  for (std::int64_t sequences = most + 1; sequences > 0; --sequences)
    shapes.push_back({.sequences = sequences, .length = 8});
  const auto kept = std::span(shapes).first(PassGraphs::most_shapes);
  twins.step_of(kept);
  EXPECT_EQ(twins.counts().plain, most);
  twins.step_of(kept);
  twins.step_of(kept);
  EXPECT_EQ(twins.counts().plain, most) << "there is room for all of them";
  EXPECT_GE(twins.counts().replayed, most);
  const Counts before = twins.counts();
  // A new shape, for which the first of the others goes; that one, which is not known any more, and for
  // which the second goes; the third, which is still there.
  const ToyShape last[] = {shapes.back(), shapes[0], shapes[2]};
  twins.step_of(last);
  const Counts after = twins.counts();
  EXPECT_EQ(after.plain, before.plain + 2);
  EXPECT_EQ(after.replayed, before.replayed + 1);
  twins.expect_same_state();
}

// ---- several ranks -------------------------------------------------------------------------

// Only the last micro-batch tells others of its gradients while it runs.
TEST(PassGraphsOnRanks, ReplicasReplayAllMicroBatchesButTheLast) {
  const auto world = session->world();
  if (world->size() != 2) GTEST_SKIP() << "needs two ranks";
  const auto device = make_cpu_device({.threads = 1});
  const ParallelContext ranks(*world, {});
  Twins twins(*device, ranks, Case{.name = "sparse"}.model(), DType::f32);
  constexpr ToyShape shapes[] = {of_text, of_text, of_text, of_text, of_text, of_text};
  for (int i = 0; i < 3; ++i) twins.step_of(shapes);
  const Counts counts = twins.counts();
  EXPECT_EQ(counts.plain, 1);
  EXPECT_EQ(counts.plain + counts.captured + counts.replayed, 3 * 2);
  EXPECT_GE(counts.replayed, 3);
  twins.expect_same_state();
}

// Two ranks whose devices send by themselves.
struct Messages {
  const char* name;
  Layout layout;
  std::int64_t experts = 4;
  float capacity = 1;
  DType dtype = DType::f32;
  Recompute recompute = Recompute::none;

  ModelConfig model() const {
    return Case{.name = name, .experts = experts, .capacity = capacity, .recompute = recompute}
        .model();
  }
};

void PrintTo(const Messages& c, std::ostream* out) {
  *out << c.name;
}

class PassGraphsWithMessages : public DeviceTest<Messages> {
 protected:
  void SetUp() override {
    if (session->world()->size() != 2) GTEST_SKIP() << "needs two ranks";
    DeviceTest<Messages>::SetUp();
    if (IsSkipped()) return;
    const auto [library, absence] = find_nccl(kind(), 2);
    if (!library) GTEST_SKIP() << absence;
    messages_ = make_nccl_world(*world_, {.device = stream().device(), .library = library});
    ranks_.emplace(*messages_, parameter().layout);
    twins_.emplace(stream().device(), *ranks_, parameter().model(), parameter().dtype);
  }
  int place() const override { return world_->rank(); }

  // With the micro-batches of each data rank.
  Counts counts_of_step(const std::vector<std::vector<ToyShape>>& shapes) {
    std::vector<ToyShape> all;
    for (const auto& of_rank : shapes) all.insert(all.end(), of_rank.begin(), of_rank.end());
    const Counts before = twins_->counts();
    twins_->step_of(all);
    const Counts after = twins_->counts();
    return {.plain = after.plain - before.plain,
            .captured = after.captured - before.captured,
            .replayed = after.replayed - before.replayed};
  }

  const std::unique_ptr<Communicator> world_ = session->world();
  std::unique_ptr<Communicator> messages_;
  std::optional<ParallelContext> ranks_;
  std::optional<Twins> twins_;
};

// Of one size, as messages of a fixed size need.
constexpr ToyShape one{.sequences = 2, .length = 13, .tiles = 1, .padding = 3},
    two{.sequences = 2, .length = 13, .tiles = 2};

// What one rank has seen and the other has not is a new pair for both, and where memory has moved on
// one, both capture anew. The last micro-batch of a step is plain.
TEST_P(PassGraphsWithMessages, RanksReplayTogetherWithTheBitsOfPlainPasses) {
  using Shapes = std::vector<std::vector<ToyShape>>;
  const auto step = [&](const Shapes& shapes, const Counts& expected, const char* when) {
    expect_counts(counts_of_step(shapes), expected, when);
  };
  const auto move_memory_of_one = [&] {
    if (world_->rank() == 0) twins_->replayed().stream().workspace(std::size_t{64} << 20);
  };
  if (ranks_->mesh().data() == 2) {
    const Shapes alike{{one, one, two}, {one, one, two}}, apart{{one, one, two}, {two, one, one}};
    step(alike, {.plain = 1, .captured = 1}, "alike");
    counts_of_step(alike);  // the first step's end may have made the workspace grow
    step(apart, {.plain = 1, .replayed = 1}, "one rank differs");
    step(apart, {.captured = 1, .replayed = 1}, "both pairs are known");
    move_memory_of_one();
    step(apart, {.captured = 2}, "memory moved on one rank");
  } else {
    const Shapes same{{one, two, one}};
    step(same, {.plain = 2}, "cold");
    step(same, {.captured = 2}, "known");
    step(same, {.replayed = 2}, "warm");
    move_memory_of_one();
    step(same, {.captured = 2}, "memory moved on one rank");
  }
  twins_->expect_same_state();
}

const Messages with_messages[] = {
    {.name = "experts", .layout = {.expert = 2}},
    {.name = "layers", .layout = {.tensor = 2, .tensor_chunks = 2}, .experts = 0}};
// On the emulator, in tests/run.sh --full.
const Messages more_with_messages[] = {{.name = "parts_of_experts_bf16_recomputed",
                                        .layout = {.expert_tensor = 2},
                                        .capacity = 1.25,
                                        .dtype = DType::bf16,
                                        .recompute = Recompute::blocks},
                                       {.name = "layers_sparse", .layout = {.tensor = 2}}};

std::string name_of_case(const ::testing::TestParamInfo<std::tuple<DeviceKind, Messages>>& test) {
  return fmt::format("{}_{}", name_of(std::get<0>(test.param)), std::get<1>(test.param).name);
}

INSTANTIATE_TEST_SUITE_P(Toys, PassGraphsWithMessages,
                         ::testing::Combine(every_gpu(), ::testing::ValuesIn(with_messages)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(DISABLED_MoreToysOnTheEmulator, PassGraphsWithMessages,
                         ::testing::Combine(::testing::Values(DeviceKind::simt),
                                            ::testing::ValuesIn(more_with_messages)),
                         name_of_case);
#ifdef ORCHARD_HAS_CUDA
INSTANTIATE_TEST_SUITE_P(MoreToys, PassGraphsWithMessages,
                         ::testing::Combine(::testing::Values(DeviceKind::cuda),
                                            ::testing::ValuesIn(more_with_messages)),
                         name_of_case);
#endif

// Sequences of several lengths in a step: the counts are read, so no pass of such a step is a graph.
using PassGraphsOfCounts = PassGraphsWithMessages;

TEST_P(PassGraphsOfCounts, WhatTheHostReadsStaysPlain) {
  constexpr ToyShape shorter{.sequences = 2, .length = 11, .tiles = 1};
  const std::vector<ToyShape> mixed{one, one, shorter}, alike{one, one, one};
  for (int i = 0; i < 2; ++i) expect_counts(counts_of_step({mixed, mixed}), {.plain = 2}, "mixed");
  expect_counts(counts_of_step({alike, alike}), {.plain = 1, .captured = 1}, "of one size");
  twins_->expect_same_state();
}

INSTANTIATE_TEST_SUITE_P(
    Toys, PassGraphsOfCounts,
    ::testing::Combine(every_gpu(),
                       ::testing::Values(Messages{.name = "experts", .layout = {.expert = 2}})),
    [](const auto& test) { return std::string(name_of(std::get<0>(test.param))); });

TEST(PassGraphsOnRanks, WhatNoGraphCanHoldIsRefused) {
  const auto world = session->world();
  if (world->size() != 2) GTEST_SKIP() << "needs two ranks";
  const auto device = find_device(DeviceKind::simt).device;
  const auto messages =
      make_nccl_world(*world, {.device = *device, .library = make_emulated_nccl()});
  const auto refusal = [&](Communicator& of, const Layout& layout, float capacity) {
    ModelConfig model = toy_model();
    model.decoder.moe.capacity_factor = capacity;
    const ParallelContext ranks(of, layout);
    return message_of(
        [&] { ModelInTraining(*device, ranks, model, DType::f32, {.graphs = Graphs::yes}); });
  };
  using ::testing::AllOf, ::testing::HasSubstr;
  for (const Layout& layout : {Layout{.expert = 2}, Layout{.expert_tensor = 2}}) {
    EXPECT_THAT(refusal(*messages, layout, 0),
                AllOf(HasSubstr("sizes the host reads"), HasSubstr(layout.to_string()),
                      HasSubstr("capacity_factor > 0 with fixed messages, or graphs = no")));
    EXPECT_THAT(refusal(*world, layout, 1),
                AllOf(HasSubstr("through host memory"), HasSubstr("or graphs = no")));
    EXPECT_EQ(refusal(*messages, layout, 1), "");
  }
  EXPECT_THAT(refusal(*world, {.tensor = 2}, 0), HasSubstr("through host memory"));
  EXPECT_THAT(refusal(*messages, {.tensor = 2, .expert = 2}, 1),
              HasSubstr("tensor ranks and those of experts at once"));
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
