// What the GPU kernels move that ranks need to share work: sums over ranks, rows on their way, the
// cross-entropy of a vocabulary's shards, AdaFactor in parts.
#include "kernels/collective/rank_sum.h"
#include "kernels/loss/loss.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/permute/exchange.h"
#include "tests/kernels/traffic_test.h"

namespace orchard::testing {
namespace {

using ShardedTraffic = Traffic;

TEST_F(ShardedTraffic, OfASumOverRanksIsEveryPartAndTheSum) {
  const std::int64_t ranks = 4, n = 16384;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::size_t bytes = n * size_of(dtype);
    expect_packed_bytes(fmt::format("RankSum, {}", name_of(dtype)), {ranks, n},
                        RankSum{.parts = tensor(dtype, {ranks, n}),
                                .own = tensor(dtype, {n}),
                                .own_rank = 1,
                                .result = tensor(dtype, {n})},
                        ranks * bytes, bytes);
  }
}

TEST_F(ShardedTraffic, OfRunsIsTheirRows) {
  const std::int64_t rows = 512, hidden = 1024, count = 64;
  std::vector<int> runs;
  for (int r = 0; r < rows / count; ++r)
    runs.insert(runs.end(), {static_cast<int>(rows - (r + 1) * count), static_cast<int>(r * count),
                             static_cast<int>(count)});
  const std::size_t bytes = 2 * rows * hidden;
  expect_dram("CopyRuns", {rows, hidden},
              CopyRuns{.x = bf16s({rows, hidden}),
                       .runs = words(runs).reshape({rows / count, 3}),
                       .y = bf16s({rows, hidden})},
              bytes + 4 * runs.size(), bytes);
}

TEST_F(ShardedTraffic, OfPackedRowsIsTheRowsAndTheirTargets) {
  const std::int64_t rows = 512, hidden = 1024, slots = 8;
  std::vector<int> tokens(rows);
  for (int r = 0; r < rows; ++r)
    tokens[static_cast<std::size_t>(r)] = r * 5 % static_cast<int>(rows);
  const std::size_t bytes = 2 * rows * hidden, of_targets = 4 * rows * slots;
  const Tensor x = bf16s({rows, hidden}), targets = tensor(DType::i32, {rows, slots});
  const Tensor packed = tensor(DType::u8, {rows, packed_row_bytes(hidden, DType::bf16, slots)});
  expect_dram("PackRows", {rows, hidden},
              PackRows{.x = x, .targets = targets, .source = words(tokens), .packed = packed},
              bytes + of_targets + 4 * rows, bytes + of_targets);
  expect_dram("UnpackRows", {rows, hidden},
              UnpackRows{.packed = packed, .x = x, .targets = targets}, bytes + of_targets,
              bytes + of_targets);
}

TEST_F(ShardedTraffic, OfMappedChoicesIsTheChoicesAndTheirTargets) {
  const std::int64_t tokens = 4096, k = 2, experts = 64, parts = 4;
  std::vector<int> chosen(tokens * k);
  for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = static_cast<int>(i * 7 % experts);
  const std::size_t choices = 4 * tokens * k, table = 4 * experts * parts;
  expect_dram("MapChoices, 4 parts of 64 experts", {tokens, k},
              MapChoices{.experts = words(chosen).reshape({tokens, k}),
                         .table = tensor(DType::i32, {experts, parts}),
                         .targets = tensor(DType::i32, {tokens, k * parts})},
              choices + table, parts * choices);
}

TEST_F(ShardedTraffic, OfCrossEntropyOfShardsIsEachLogitOnce) {
  const std::int64_t rows = 4, shard = 16384, shards = 2;
  const std::size_t n = rows * shard, of_rows = 4 * rows;
  const VocabularyShard range{.first_id = 0, .vocabulary = shards * shard};
  const Shape shape = {rows, shard};
  const Tensor logits = floats(shape), targets = tensor(DType::i32, {rows});
  const Tensor statistics = floats({rows, softmax_statistics}), losses = floats({rows});
  const Tensor all = floats({shards, rows, softmax_statistics});
  SoftmaxOfShard softmax{
      .logits = logits, .targets = targets, .shard = range, .statistics = statistics};
  expect_packed_bytes("SoftmaxOfShard, sums alone", shape, softmax, 4 * n, 0);
  softmax.exponentials = logits;
  expect_packed_bytes("SoftmaxOfShard in place", shape, softmax, 4 * n, 4 * n);
  CrossEntropyOfShards loss{.statistics = all,
                            .targets = targets,
                            .shard = range,
                            .losses = losses,
                            .exponentials = logits,
                            .d_logits = bf16s(shape)};
  // Every warp of a row reads its statistics: the caches serve all but the first.
  expect_dram("CrossEntropyOfShards to bf16", shape, loss, 4 * n + of_rows, 2 * n + of_rows);
  loss.d_logits = logits;
  expect_dram("CrossEntropyOfShards in place", shape, loss, 4 * n + of_rows, 4 * n + of_rows);
}

// What of a row shared memory does not hold is read again, which finds it in the L2.
TEST_F(ShardedTraffic, OfTheSoftmaxOfALongShardIsEachLogitOnceFromDram) {
  const std::int64_t rows = 4, shard = 49152;
  const Shape shape = {rows, shard};
  const std::size_t n = rows * shard, words_of_rows = 4 * rows;
  const Tensor logits = floats(shape);
  SoftmaxOfShard softmax{.logits = logits,
                         .targets = tensor(DType::i32, {rows}),
                         .shard = {.first_id = 0, .vocabulary = 2 * shard},
                         .statistics = floats({rows, softmax_statistics}),
                         .exponentials = floats(shape)};
  const std::size_t of_statistics = softmax_statistics * words_of_rows;
  const simt::Counters counters =
      expect_dram("SoftmaxOfShard", shape, softmax, 4 * n + words_of_rows, 4 * n + of_statistics);
  const std::size_t again = rows * (shard - 24 * 1024 + 64);
  EXPECT_GE(32 * counters.loads.sectors, 4 * (n + again));
  EXPECT_LE(32 * counters.loads.sectors, 4 * (n + again) * 21 / 20);
  softmax.exponentials = logits;
  expect_dram("SoftmaxOfShard in place", shape, softmax, 4 * n + words_of_rows,
              4 * n + of_statistics);
}

TEST_F(ShardedTraffic, OfAdaFactorInPartsIsWhatItsHeaderSays) {
  const std::int64_t rows = 512, cols = 1024;
  const Shape shape = {rows, cols};
  const std::size_t n = rows * cols;
  const Tensor w = floats(shape), g = floats(shape), v = floats(shape), copy = bf16s(shape);
  const Tensor v_row = floats({rows}), v_col = floats({cols}), squares = floats({1}),
               scale = floats({1});
  const Tensor row_sums = floats({rows}), col_sums = floats({cols});
  expect_dram(
      "AdaFactorSums", shape,
      AdaFactorSums{
          .gradients = g, .row_sums = row_sums, .col_sums = col_sums, .gradient_scale = scale},
      4 * n, 0);
  expect_dram("AdaFactorMeasure", shape,
              AdaFactorMeasure{.gradients = g,
                               .row_sums = row_sums,
                               .col_sums = col_sums,
                               .v_row = v_row,
                               .v_col = v_col,
                               .squares = squares,
                               .rows = rows,
                               .gradient_scale = scale},
              4 * n, 0);
  expect_dram("AdaFactorMeasure, unfactored", shape,
              AdaFactorMeasure{.gradients = g, .v = v, .squares = squares, .gradient_scale = scale},
              8 * n, 4 * n);
  AdaFactorApply apply{.weights = w,
                       .gradients = g,
                       .v_row = v_row,
                       .v_col = v_col,
                       .copy = copy,
                       .squares = squares,
                       .count = rows * cols,
                       .gradient_scale = scale};
  expect_dram("AdaFactorApply with a bf16 copy", shape, apply, 8 * n, 6 * n);
  apply.v_row = apply.v_col = {}, apply.v = v, apply.copy = {};
  expect_dram("AdaFactorApply, unfactored", shape, apply, 12 * n, 4 * n);
}

}  // namespace
}  // namespace orchard::testing
