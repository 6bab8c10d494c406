// What the GPU kernels of memory-bound operations move, counted by the emulator: each operand once, in
// full sectors. Counts are exact, so they hold on every GPU whose caches keep what is small and
// shared: sectors of requests for kernels that ask for everything once, first touches of DRAM (which take
// each launch's caches as empty at its start) for those that ask again for what the caches have.
#include "tests/kernels/traffic_test.h"

#include "kernels/activation/activation.h"
#include "kernels/convolution/convolution.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/image/image.h"
#include "kernels/loss/loss.h"
#include "kernels/norm/norm.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace orchard::testing {
namespace {

TEST_F(Traffic, OfPointwiseOperationsIsTheirOperands) {
  const Shape shape = {16, 4096};
  const std::size_t n = 16 * 4096;
  const Tensor a = bf16s(shape), b = bf16s(shape), c = bf16s(shape), d = bf16s(shape);
  const Tensor e = bf16s(shape), f = bf16s(shape), wide = floats(shape);
  expect_packed_bytes(Add{.a = a, .b = b, .y = c}, 4 * n, 2 * n);
  expect_packed_bytes(Add{.a = wide, .b = wide, .y = wide}, 8 * n, 4 * n);
  expect_packed_bytes(Convert{.x = wide, .y = a}, 4 * n, 2 * n);
  expect_packed_bytes(Convert{.x = a, .y = wide}, 2 * n, 4 * n);
  expect_packed_bytes(Scale{.x = a, .factor = 2}, 2 * n, 2 * n);
  expect_packed_bytes(ActivationForward{.kind = Activation::silu, .x = a, .y = b}, 2 * n, 2 * n);
  expect_packed_bytes(
      ActivationBackward{.kind = Activation::quick_gelu, .x = a, .d_y = b, .d_x = c}, 4 * n, 2 * n);
  expect_packed_bytes(SwiGluForward{.gate = a, .up = b, .y = c}, 4 * n, 2 * n);
  expect_packed_bytes(SwiGluBackward{.gate = a, .up = b, .d_y = c, .d_gate = d, .d_up = e, .y = f},
                      6 * n, 6 * n);
}

TEST_F(Traffic, OfSumsOverRowsIsTheRows) {
  const std::size_t n = 1024 * 1024;
  expect_bytes(ColumnSum{.x = bf16s({1024, 1024}), .y = floats({1024})}, 2 * n, 0);
  expect_packed_bytes(SumOfSquares{.x = floats({1024, 256}), .result = floats({1})}, n, 0);
}

TEST_F(Traffic, OfExcitationIsTheImages) {
  const Shape shape = {2, 512, 256};
  const std::size_t n = 2 * 512 * 256;
  const Tensor x = bf16s(shape), y = bf16s(shape), d_x = bf16s(shape), scale = bf16s({2, 256});
  expect_bytes(ExciteForward{.x = x, .scale = scale, .y = y}, 2 * n, 2 * n);
  expect_bytes(ExciteBackward{.x = x, .scale = scale, .d_y = y, .d_x = d_x, .d_scale = scale},
               4 * n, 2 * n);
}

// Of 40 rows and more for each block, so that its weight and share of the gradients count little.
TEST_F(Traffic, OfANormIsItsRows) {
  const Shape shape = {16384, 512};
  const std::size_t n = 16384 * 512;
  const Tensor x = bf16s(shape), y = bf16s(shape), d_sum = bf16s(shape), d_x = bf16s(shape);
  const Tensor weight = bf16s({512}), statistic = floats({16384}), mean = floats({16384});
  const Tensor d_weight = floats({512}), d_bias = floats({512});
  expect_bytes(RmsNormBackward{.x = x,
                               .weight = weight,
                               .inverse_rms = statistic,
                               .d_y = y,
                               .d_sum = d_sum,
                               .d_x = d_x,
                               .d_weight = d_weight},
               6 * n, 2 * n);
  expect_dram("LayerNormBackward",
              LayerNormBackward{.x = x,
                                .weight = weight,
                                .mean = mean,
                                .inverse_std = statistic,
                                .d_y = y,
                                .d_sum = d_sum,
                                .d_x = d_x,
                                .d_weight = d_weight,
                                .d_bias = d_bias},
              6 * n, 2 * n);
}

// A block leaves a partial sum of its gradients for each column, which the next launch adds up: of strips of
// 32 rows, the shortest, 16 bytes (LayerNorm) beside 256 of its rows.
TEST_F(Traffic, OfNormsWithStatisticsIsTheirRows) {
  const std::int64_t rows = 4096, cols = 512;
  const Shape shape = {rows, cols};
  const std::size_t n = rows * cols, statistics = 4 * rows;
  const Tensor x = bf16s(shape), delta = bf16s(shape), sum = bf16s(shape), y = bf16s(shape);
  const Tensor weight = bf16s({cols}), bias = bf16s({cols}), mean = floats({rows});
  const Tensor inverse = floats({rows}), d_weight = floats({cols}), d_bias = floats({cols});
  expect_dram(
      "RmsNormForward",
      RmsNormForward{
          .x = x, .delta = delta, .weight = weight, .sum = sum, .y = y, .inverse_rms = inverse},
      4 * n + 2 * cols, 4 * n + statistics);
  expect_dram("LayerNormForward",
              LayerNormForward{.x = x,
                               .delta = delta,
                               .weight = weight,
                               .bias = bias,
                               .sum = sum,
                               .y = y,
                               .mean = mean,
                               .inverse_std = inverse},
              4 * n + 4 * cols, 4 * n + 2 * statistics);
  expect_dram("RmsNormBackward",
              RmsNormBackward{.x = x,
                              .weight = weight,
                              .inverse_rms = inverse,
                              .d_y = y,
                              .d_sum = sum,
                              .d_x = delta,
                              .d_weight = d_weight},
              6 * n + 2 * cols + statistics + 4 * cols, 2 * n + 4 * cols);
  expect_dram("LayerNormBackward",
              LayerNormBackward{.x = x,
                                .weight = weight,
                                .mean = mean,
                                .inverse_std = inverse,
                                .d_y = y,
                                .d_sum = sum,
                                .d_x = delta,
                                .d_weight = d_weight,
                                .d_bias = d_bias},
              6 * n + 2 * cols + 2 * statistics + 8 * cols, 2 * n + 8 * cols, 0.08);
}

TEST_F(Traffic, OfQkNormIsItsHeads) {
  const std::int64_t tokens = 512, heads = 16, dim = 128;
  const Shape shape = {tokens, heads, dim};
  const std::size_t n = tokens * heads * dim, statistics = 4 * tokens * heads;
  const Tensor x = bf16s(shape), y = bf16s(shape), d_y = bf16s(shape), weight = bf16s({dim});
  const Tensor rotation = floats({tokens, dim}), inverse = floats({tokens, heads});
  std::vector<int> places(tokens);
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int>(i);
  const Tensor positions = words(places), d_weight = floats({dim});
  const std::size_t shared = 2 * dim + 4 * tokens * dim + 4 * tokens;
  expect_dram("QkNormRopeForward",
              QkNormRopeForward{.x = x,
                                .weight = weight,
                                .rotation = rotation,
                                .positions = positions,
                                .y = y,
                                .inverse_rms = inverse},
              2 * n + shared, 2 * n + statistics);
  expect_dram("QkNormRopeBackward",
              QkNormRopeBackward{.x = x,
                                 .weight = weight,
                                 .rotation = rotation,
                                 .positions = positions,
                                 .inverse_rms = inverse,
                                 .d_y = d_y,
                                 .d_x = y,
                                 .d_weight = d_weight},
              4 * n + shared + statistics + 4 * dim, 2 * n + 4 * dim);
}

TEST_F(Traffic, OfARouterIsLogitsAndProbabilities) {
  const std::int64_t tokens = 4096, experts = 64, k = 2;
  const std::size_t n = tokens * experts, choices = tokens * k;
  RouterForward forward{.logits = floats({tokens, experts}),
                        .sequence_offsets = words({0, tokens / 2, tokens}),
                        .real_tokens = words({tokens / 2, tokens / 2}),
                        .k = k,
                        .probabilities = floats({tokens, experts}),
                        .log_sum_exp = floats({tokens}),
                        .chosen = tensor(DType::i32, {tokens, k}),
                        .experts = tensor(DType::i32, {tokens, k}),
                        .gates = floats({tokens, k}),
                        .choice_fractions = floats({2, experts}),
                        .balance_loss = floats({2}),
                        .z_loss = floats({2}),
                        .expert_counts = tensor(DType::i32, {2, experts})};
  expect_dram("RouterForward", forward, 4 * n, 4 * n + 4 * tokens + 12 * choices);
  EXPECT_EQ(count(forward).launches, 1u);
  expect_dram("RouterBackward",
              RouterBackward{.probabilities = forward.probabilities,
                             .log_sum_exp = forward.log_sum_exp,
                             .chosen = forward.chosen,
                             .experts = forward.experts,
                             .choice_fractions = forward.choice_fractions,
                             .sequence_offsets = forward.sequence_offsets,
                             .real_tokens = forward.real_tokens,
                             .d_gates = floats({tokens, k}),
                             .k = k,
                             .balance_scale = floats({1}),
                             .z_scale = floats({1}),
                             .d_logits = floats({tokens, experts})},
              4 * n + 4 * tokens + 12 * choices, 4 * n);
  // With a capacity, choices are read once more, and the gates of those that are dropped written twice: here
  // all but few, since all logits are alike.
  forward.capacity_factor = 1.25f;
  expect_dram("RouterForward with a capacity", forward, 4 * n, 4 * n + 4 * tokens + 12 * choices);
  EXPECT_EQ(count(forward).launches, 2u);
}

TEST_F(Traffic, OfDispatchAndCombineIsEachRowOnce) {
  const std::int64_t tokens = 512, experts = 8, k = 2, hidden = 1024;
  const std::int64_t rows = max_expert_rows(tokens, k, experts);
  std::vector<int> choices;
  for (int t = 0; t < tokens; ++t) choices.insert(choices.end(), {t % 8, (t + 1 + t / 8 % 7) % 8});
  const PermutePlan plan{.experts = words(choices).reshape({tokens, k}),
                         .row_offsets = tensor(DType::i32, {experts + 1}),
                         .source = tensor(DType::i32, {rows}),
                         .slot = tensor(DType::i32, {tokens, k})};
  const std::size_t of_choices = 4 * tokens * k;
  // Words beside rows, and bound by the latency of its launches: both read the choices. Sources are written
  // one by one: where a warp's 32 choices are of 8 experts, half a sector each.
  expect_dram("PermutePlan", plan, of_choices, of_choices + 4 * static_cast<std::size_t>(rows),
              0.34, 0.45);
  EXPECT_EQ(count(plan).launches, 2u);
  // Each expert has 128 rows: none is padding.
  const std::size_t of_tokens = 2 * tokens * hidden, of_rows = k * of_tokens;
  const Tensor x = bf16s({tokens, hidden}), y = bf16s({tokens, hidden});
  const Tensor in = bf16s({rows, hidden}), out = bf16s({rows, hidden});
  const Tensor gates = floats({tokens, k}), d_gates = floats({tokens, k});
  expect_dram("DispatchForward",
              DispatchForward{.x = x,
                              .source = plan.source,
                              .slot = plan.slot,
                              .row_offsets = plan.row_offsets,
                              .rows = out},
              of_tokens, of_rows);
  expect_dram(
      "DispatchForward without slots",
      DispatchForward{.x = x, .source = plan.source, .row_offsets = plan.row_offsets, .rows = out},
      of_tokens, of_rows);
  expect_dram("DispatchBackward",
              DispatchBackward{.d_rows = in, .slot = plan.slot, .d_extra = x, .d_x = y},
              of_rows + of_tokens, of_tokens);
  expect_dram("CombineForward",
              CombineForward{.rows = in, .slot = plan.slot, .gates = gates, .y = y}, of_rows,
              of_tokens);
  expect_dram("CombineBackward",
              CombineBackward{.rows = in,
                              .source = plan.source,
                              .slot = plan.slot,
                              .gates = gates,
                              .row_offsets = plan.row_offsets,
                              .d_y = y,
                              .d_rows = out,
                              .d_gates = d_gates},
              of_rows + of_tokens, of_rows);
}

TEST_F(Traffic, OfConvolutionAndPoolingIsThePictures) {
  const std::int64_t images = 3, side = 24, channels = 256;
  const Shape shape = {images, side, side, channels}, small = {images, 12, 12, channels};
  const std::size_t n = images * side * side * channels, few = images * 12 * 12 * channels;
  const Tensor x = bf16s(shape), y = bf16s(shape), weight = bf16s({channels, 3, 3});
  const Tensor d_weight = floats({channels, 3, 3}), pooled = bf16s(small);
  const std::size_t weights = 9 * channels;
  expect_dram("DepthwiseConv3x3Forward", DepthwiseConv3x3Forward{.x = x, .weight = weight, .y = y},
              2 * n + 2 * weights, 2 * n);
  expect_dram("DepthwiseConv3x3BackwardInput",
              DepthwiseConv3x3BackwardInput{.d_y = y, .weight = weight, .d_x = x},
              2 * n + 2 * weights, 2 * n);
  // Each block leaves the sums of its part of the pictures: 72 strips of rows, three beside each other, for
  // eight warps. They are a twentieth at 11664 pixels of 1024 channels.
  const std::size_t parts = 72 * 3 / 8, partial = 4 * weights * parts;
  expect_dram("DepthwiseConv3x3BackwardWeight",
              DepthwiseConv3x3BackwardWeight{.x = x, .d_y = y, .d_weight = d_weight},
              4 * n + 4 * weights + partial, 4 * weights + partial);
  expect_dram("AdaptiveAveragePoolForward", AdaptiveAveragePoolForward{.x = x, .y = pooled}, 2 * n,
              2 * few);
  expect_dram("AdaptiveAveragePoolBackward", AdaptiveAveragePoolBackward{.d_y = pooled, .d_x = x},
              2 * few, 2 * n);
  const Tensor mean = bf16s({images, 1, 1, channels});
  expect_dram("GlobalMean", AdaptiveAveragePoolForward{.x = x, .y = mean}, 2 * n,
              2 * images * channels);
  expect_dram("GlobalMeanBackward", AdaptiveAveragePoolBackward{.d_y = mean, .d_x = x},
              2 * images * channels, 2 * n);
  expect_dram("ExciteForward",
              ExciteForward{.x = x.reshape({images, side * side, channels}),
                            .scale = mean.reshape({images, channels}),
                            .y = y.reshape({images, side * side, channels})},
              2 * n + 2 * images * channels, 2 * n);
}

TEST_F(Traffic, OfResizingAndPatchesIsThePixels) {
  const std::int64_t in = 200, side = 112, patch = 14;
  const std::size_t pixels = side * side * 3;
  const std::size_t between = 4 * side * in * 3;  // after the horizontal pass
  const Tensor canvas = floats({side, side, 3});
  expect_dram("ResizeBicubic",
              ResizeBicubic{
                  .x = tensor(DType::u8, {in, in, 3}), .height = side, .width = side, .y = canvas},
              in * in * 3 + between, between + 4 * pixels);
  expect_dram("NormalisePatchify",
              NormalisePatchify{.x = canvas,
                                .height = side,
                                .width = side,
                                .side = side,
                                .patch = patch,
                                .patches = bf16s({1, 64, 3 * patch * patch})},
              4 * pixels, 2 * pixels);
}

TEST_F(Traffic, OfTablesIsTheRowsNamed) {
  const std::int64_t tokens = 512, vocab = 700, hidden = 1024;
  std::vector<int> ids(tokens), every_other(tokens / 2);
  for (int t = 0; t < tokens; ++t) ids[static_cast<std::size_t>(t)] = t * 97 % 700;
  for (std::size_t i = 0; i < every_other.size(); ++i) every_other[i] = static_cast<int>(2 * i);
  const Tensor sources = words(ids), table = bf16s({vocab, hidden}), y = bf16s({tokens, hidden});
  const Tensor d_table = floats({vocab, hidden}), half = bf16s({tokens / 2, hidden});
  const std::size_t n = tokens * hidden, names = 4 * tokens;
  expect_dram("EmbeddingForward", EmbeddingForward{.table = table, .sources = sources, .y = y},
              2 * n + names, 2 * n);
  // The sort by id is a library's, and not counted.
  expect_dram("EmbeddingBackward",
              EmbeddingBackward{.d_y = y, .sources = sources, .d_table = d_table}, 6 * n + names,
              4 * n);
  const Tensor indices = words(every_other);
  expect_dram("GatherRows", GatherRows{.x = y, .indices = indices, .y = half}, n, n);
  expect_dram("ScatterRows", ScatterRows{.x = half, .indices = indices, .y = y}, n, 2 * n);
  const Shape with = {4, 65, 512}, without = {4, 64, 512};
  const std::size_t m = 4 * 64 * 512;
  const Tensor patches = bf16s(without), positions = bf16s({65, 512}), out = bf16s(with);
  expect_dram(
      "PrependClassForward",
      PrependClassForward{
          .patches = patches, .class_token = bf16s({512}), .positions = positions, .y = out},
      2 * m + 2 * 66 * 512, 2 * m + 2 * 4 * 512);
  expect_dram("DropClassForward",
              DropClassForward{.x = out, .positions = bf16s({64, 512}), .y = patches},
              2 * m + 2 * 64 * 512, 2 * m);
  // Sums of the gradients of positions are read and written; so is the class token's.
  const Tensor d_positions = floats({65, 512}), d_class_token = floats({512});
  expect_dram("PrependClassBackward",
              PrependClassBackward{.d_y = out,
                                   .d_patches = patches,
                                   .d_class_token = d_class_token,
                                   .d_positions = d_positions},
              2 * m + 2 * 4 * 512 + 4 * 66 * 512, 2 * m + 4 * 66 * 512);
  const Tensor d_kept = floats({64, 512});
  expect_dram("DropClassBackward",
              DropClassBackward{.d_y = patches, .d_x = out, .d_positions = d_kept},
              2 * m + 4 * 64 * 512, 2 * m + 2 * 4 * 512 + 4 * 64 * 512);
}

TEST_F(Traffic, OfCrossEntropyIsEachLogitOnceWhileARowFitsSharedMemory) {
  const std::size_t n = 4 * 16384;
  const Tensor logits = floats({4, 16384}), targets = tensor(DType::i32, {4});
  const Tensor losses = floats({4});
  expect_packed_bytes(CrossEntropy{.logits = logits, .targets = targets, .losses = losses}, 4 * n,
                      0);
  expect_packed_bytes(
      CrossEntropy{.logits = logits, .targets = targets, .losses = losses, .d_logits = logits},
      4 * n, 4 * n);
  expect_packed_bytes(
      CrossEntropy{
          .logits = logits, .targets = targets, .losses = losses, .d_logits = bf16s({4, 16384})},
      4 * n, 2 * n);
}

// What of a row shared memory does not hold is read again, which finds it in the L2: DRAM sees it once.
TEST_F(Traffic, OfCrossEntropyOfLongRowsIsEachLogitOnceFromDram) {
  const std::int64_t rows = 4, vocab = 49152;
  const std::size_t n = rows * vocab, words_of_rows = 4 * rows;
  const Tensor logits = floats({rows, vocab}), targets = tensor(DType::i32, {rows});
  CrossEntropy op{.logits = logits, .targets = targets, .losses = floats({rows})};
  expect_dram("CrossEntropy", op, 4 * n + words_of_rows, words_of_rows);
  op.d_logits = bf16s({rows, vocab});
  expect_dram("CrossEntropy to bf16", op, 4 * n + words_of_rows, 2 * n + words_of_rows);
  // Half of the row and a little more is asked for twice.
  const std::size_t again = rows * (vocab - 24 * 1024 + 64);
  expect_bytes(op, 4 * (n + again), 2 * n);
  op.d_logits = logits;
  expect_dram("CrossEntropy in place", op, 4 * n + words_of_rows, 4 * n + words_of_rows);
}

TEST_F(Traffic, OfOptimizersIsWhatTheirHeadersSay) {
  const Shape shape = {512, 1024};
  const std::size_t n = 512 * 1024;
  const Tensor w = floats(shape), g = floats(shape), m = floats(shape), v = floats(shape);
  const Tensor copy = bf16s(shape), row = floats({512}), col = floats({1024});
  const Tensor scale = floats({1});
  AdamW adamw{.weights = w, .gradients = g, .m = m, .v = v, .gradient_scale = scale};
  expect_packed_bytes(adamw, 16 * n, 12 * n);
  adamw.copy = copy;
  expect_packed_bytes(adamw, 16 * n, 14 * n);
  const AdaFactor factored{.weights = w,
                           .gradients = g,
                           .v_row = row,
                           .v_col = col,
                           .copy = copy,
                           .gradient_scale = scale};
  expect_dram("AdaFactor", factored, 16 * n, 6 * n);
  // The factors of a tile's rows and columns are asked for by each warp: caches serve all but the first.
  expect_bytes(factored, 16 * n, 6 * n, 0.08);
  expect_bytes(AdaFactor{.weights = w, .gradients = g, .v = v, .gradient_scale = scale}, 20 * n,
               8 * n);
}

}  // namespace
}  // namespace orchard::testing
