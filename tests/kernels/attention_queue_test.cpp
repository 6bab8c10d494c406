// The persistent blocks of attention on sm_90a: whoever takes a tile, and whatever tiles it did before, its
// results have the same bits.
#include "tests/kernels/attention_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

constexpr DType b16 = DType::bf16;

// How many blocks there are, and how many of them run at once: alone, the first takes all tiles.
struct Blocks {
  int launched, at_once;
};

SimtOptions with(const Blocks& blocks, SimtOptions options = {}) {
  options.compute_capability = 90;
  options.multiprocessors = blocks.launched;
  options.clusters_at_once = blocks.at_once;
  return options;
}

AttentionProblem run_with(const AttentionCase& c, const SimtOptions& options) {
  AttentionProblem problem(c);
  const auto device = make_policy_device(options);
  run_both(*device->make_stream(), problem);
  return problem;
}

class AttentionTilesOnSm90 : public ::testing::TestWithParam<AttentionCase> {};

// More blocks than tiles, which all take their first before any takes a second, are a block a tile.
TEST_P(AttentionTilesOnSm90, HaveTheSameBitsInEveryBlock) {
  using simt::AsyncCompletion;
  using simt::ThreadOrder;
  const AttentionProblem apart = run_with(GetParam(), with({100, 100}));
  const auto expect_same = [&](const Blocks& blocks, const SimtOptions& options) {
    EXPECT_TRUE(apart.same_results(run_with(GetParam(), with(blocks, options))))
        << blocks.launched << " blocks, " << blocks.at_once << " at once";
  };
  expect_same({1, 1}, {});
  expect_same({2, 2}, {.completion = AsyncCompletion::eager});
  expect_same({3, 3}, {.order = ThreadOrder::reverse});
  for (const std::uint64_t seed : {1, 2}) {
    const SimtOptions random{
        .order = ThreadOrder::random, .seed = seed, .completion = AsyncCompletion::random};
    expect_same({1, 1}, random);
    expect_same({3, 3}, random);
    expect_same({5, 2}, random);
  }
}

// One after the other in a block: tiles of one group of rows and of all, of more tiles of columns than a ring
// holds and of one, of rows that see nothing or are in no document, and spare slots; tails of every other
// kind; heads that share keys, with more tails than stages on their way.
INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionTilesOnSm90,
    ::testing::Values(
        AttentionCase{b16, 2, 1, 128, {1, 130, 0, 64}, {}, Mask::causal, 3},
        AttentionCase{b16, 1, 1, 128, {70, 10, 0, 65}, {333, 0, 5, 129}, Mask::full, 2},
        AttentionCase{b16, 2, 2, 128, {140, 3, 40}, {37, 200, 10}},
        AttentionCase{b16, 6, 1, 128, {40, 9}},
        AttentionCase{b16, 2, 1, 64, {1, 193, 0, 64}, {}, Mask::causal, 3},
        AttentionCase{b16, 1, 1, 64, {70, 10, 0, 65}, {600, 0, 5, 129}, Mask::full, 2},
        AttentionCase{b16, 2, 2, 64, {200, 3, 40}, {37, 200, 10}},
        AttentionCase{b16, 6, 1, 64, {40, 9}}));

// A launch that did not leave the counter of tiles at zero would hide tiles from the next one.
TEST(AttentionQueueOnSm90, LeavesAllTilesToTheNextLaunch) {
  for (const Blocks& blocks : {Blocks{1, 1}, Blocks{3, 3}, Blocks{100, 1}}) {
    const AttentionCase c{b16, 2, 1, 64, {130, 5}};
    const auto device = make_policy_device(with(blocks));
    const auto stream = device->make_stream();
    AttentionProblem first(c), second(c);
    run_both(*stream, first);
    run_both(*stream, second);
    EXPECT_TRUE(first.same_results(second)) << blocks.launched;
  }
}

// As many blocks as multiprocessors, if there are tiles for them.
TEST(AttentionQueueOnSm90, LaunchesABlockForEachMultiprocessor) {
  const auto blocks_of = [](int multiprocessors, auto run_operation) {
    AttentionProblem problem({b16, 1, 1, 128, {1000}});
    const auto device = make_policy_device(with({multiprocessors, 1}));
    const auto stream = device->make_stream();
    AttentionProblemOnDevice on_device(*stream, problem);
    run(*stream, on_device.forward());
    stream->synchronize();
    device->reset_counters();
    run_operation(*stream, on_device);
    stream->synchronize();
    return device->counters().blocks;
  };
  const auto forward = [](Stream& stream, AttentionProblemOnDevice& p) {
    run(stream, p.forward());
  };
  EXPECT_EQ(blocks_of(3, forward), 3u);
  EXPECT_EQ(blocks_of(1000, forward), 1000u / 128 + 1 + 2);  // of which two are spare
}

}  // namespace
}  // namespace orchard::testing
