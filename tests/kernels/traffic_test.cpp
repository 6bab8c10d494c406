// What the GPU kernels of memory-bound operations move, counted by the emulator: each operand once, in
// full sectors. Counts are exact, so they hold on every GPU whose caches keep what is small and
// shared: sectors of requests for kernels that ask for everything once, first touches of DRAM (which take
// each launch's caches as empty at its start) for those that ask again for what the caches have.
#include "tests/kernels/traffic_test.h"

#include <algorithm>

#include "kernels/activation/activation.h"
#include "kernels/convolution/convolution.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/image/image.h"
#include "kernels/loss/loss.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace orchard::testing {
namespace {

TEST_F(Traffic, OfPointwiseOperationsIsTheirOperands) {
  const Shape shape = {16, 4096};
  const std::size_t n = 16 * 4096;
  const Tensor a = bf16s(shape), b = bf16s(shape), c = bf16s(shape), d = bf16s(shape);
  const Tensor e = bf16s(shape), f = bf16s(shape);
  const Tensor wide = floats(shape), wider = floats(shape);
  expect_packed_bytes("Add, bf16", shape, Add{.a = a, .b = b, .y = c}, 4 * n, 2 * n);
  expect_packed_bytes("Add, f32", shape, Add{.a = wide, .b = wider, .y = floats(shape)}, 8 * n,
                      4 * n);
  expect_packed_bytes("Convert to bf16", shape, Convert{.x = wide, .y = a}, 4 * n, 2 * n);
  expect_packed_bytes("Convert to f32", shape, Convert{.x = a, .y = wide}, 2 * n, 4 * n);
  expect_packed_bytes("Scale", shape, Scale{.x = a, .factor = 2}, 2 * n, 2 * n);
  expect_packed_bytes("ActivationForward, SiLU", shape,
                      ActivationForward{.kind = Activation::silu, .x = a, .y = b}, 2 * n, 2 * n);
  expect_packed_bytes(
      "ActivationBackward, quick-gelu", shape,
      ActivationBackward{.kind = Activation::quick_gelu, .x = a, .d_y = b, .d_x = c}, 4 * n, 2 * n);
  expect_packed_bytes("SwiGluForward", shape, SwiGluForward{.gate = a, .up = b, .y = c}, 4 * n,
                      2 * n);
  expect_packed_bytes("SwiGluBackward with y", shape,
                      SwiGluBackward{.gate = a, .up = b, .d_y = c, .d_gate = d, .d_up = e, .y = f},
                      6 * n, 6 * n);
}

TEST_F(Traffic, OfSumsOverRowsIsTheRows) {
  const Shape shape = {1024, 1024};
  const std::size_t n = 1024 * 1024;
  expect_bytes("ColumnSum", shape, ColumnSum{.x = bf16s(shape), .y = floats({1024})}, 2 * n, 0);
  const Shape fewer = {1024, 256};
  expect_packed_bytes("SumOfSquares", fewer,
                      SumOfSquares{.x = floats(fewer), .result = floats({1})}, n, 0);
}

TEST_F(Traffic, OfExcitationIsTheImages) {
  const Shape shape = {2, 512, 256};
  const std::size_t n = 2 * 512 * 256;
  const Tensor x = bf16s(shape), y = bf16s(shape), d_x = bf16s(shape), scale = bf16s({2, 256});
  expect_bytes("ExciteForward", shape, ExciteForward{.x = x, .scale = scale, .y = y}, 2 * n, 2 * n);
  expect_bytes("ExciteBackward", shape,
               ExciteBackward{.x = x, .scale = scale, .d_y = y, .d_x = d_x, .d_scale = scale},
               4 * n, 2 * n);
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
  const Shape shape = {tokens, experts};
  const simt::Counters counters =
      expect_dram("RouterForward, k 2", shape, forward, 4 * n, 4 * n + 4 * tokens + 12 * choices);
  EXPECT_EQ(counters.launches, 1u);
  expect_dram("RouterBackward, k 2", shape,
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
  const simt::Counters dropping = expect_dram("RouterForward, k 2, with a capacity", shape, forward,
                                              4 * n, 4 * n + 4 * tokens + 12 * choices);
  EXPECT_EQ(dropping.launches, 2u);
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
  const simt::Counters planning =
      expect_dram("PermutePlan, 8 experts", {tokens, k}, plan, of_choices,
                  of_choices + 4 * static_cast<std::size_t>(rows), 0.34, 0.45);
  EXPECT_EQ(planning.launches, 2u);
  const Shape shape = {tokens, k, hidden};
  // Each expert has 128 rows: none is padding.
  const std::size_t of_tokens = 2 * tokens * hidden, of_rows = k * of_tokens;
  const Tensor x = bf16s({tokens, hidden}), y = bf16s({tokens, hidden});
  const Tensor in = bf16s({rows, hidden}), out = bf16s({rows, hidden});
  const Tensor gates = floats({tokens, k}), d_gates = floats({tokens, k});
  expect_dram("DispatchForward", shape,
              DispatchForward{.x = x,
                              .source = plan.source,
                              .slot = plan.slot,
                              .row_offsets = plan.row_offsets,
                              .rows = out},
              of_tokens, of_rows);
  expect_dram(
      "DispatchForward without slots", shape,
      DispatchForward{.x = x, .source = plan.source, .row_offsets = plan.row_offsets, .rows = out},
      of_tokens, of_rows);
  expect_dram("DispatchBackward", shape,
              DispatchBackward{.d_rows = in, .slot = plan.slot, .d_extra = x, .d_x = y},
              of_rows + of_tokens, of_tokens);
  expect_dram("CombineForward", shape,
              CombineForward{.rows = in, .slot = plan.slot, .gates = gates, .y = y}, of_rows,
              of_tokens);
  expect_dram("CombineBackward", shape,
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
  const Tensor pooled = bf16s(small);
  const std::size_t weights = 9 * channels;
  expect_dram("DepthwiseConv3x3Forward", shape,
              DepthwiseConv3x3Forward{.x = x, .weight = weight, .y = y}, 2 * n + 2 * weights,
              2 * n);
  expect_dram("DepthwiseConv3x3BackwardInput", shape,
              DepthwiseConv3x3BackwardInput{.d_y = y, .weight = weight, .d_x = x},
              2 * n + 2 * weights, 2 * n);
  expect_dram("AdaptiveAveragePoolForward", shape, AdaptiveAveragePoolForward{.x = x, .y = pooled},
              2 * n, 2 * few);
  expect_dram("AdaptiveAveragePoolBackward", shape,
              AdaptiveAveragePoolBackward{.d_y = pooled, .d_x = x}, 2 * few, 2 * n);
  const Tensor mean = bf16s({images, 1, 1, channels});
  expect_dram("GlobalMean", shape, AdaptiveAveragePoolForward{.x = x, .y = mean}, 2 * n,
              2 * images * channels);
  expect_dram("GlobalMeanBackward", shape, AdaptiveAveragePoolBackward{.d_y = mean, .d_x = x},
              2 * images * channels, 2 * n);
  expect_dram("ExciteForward", shape,
              ExciteForward{.x = x.reshape({images, side * side, channels}),
                            .scale = mean.reshape({images, channels}),
                            .y = y.reshape({images, side * side, channels})},
              2 * n + 2 * images * channels, 2 * n);
}

// Of the connector's pictures in stage 1, of all presets. A block leaves its nine sums of each channel, which
// are written and read again: of 33 blocks a little more than a twentieth.
TEST_F(Traffic, OfADepthwiseWeightGradientIsThePictures) {
  const Shape shape = {16, 27, 27, 1024}, taps = {1024, 3, 3};
  const std::size_t n = 16 * 27 * 27 * 1024, weights = 9 * 1024;
  expect_dram("DepthwiseConv3x3BackwardWeight", shape,
              DepthwiseConv3x3BackwardWeight{
                  .x = bf16s(shape), .d_y = bf16s(shape), .d_weight = floats(taps)},
              4 * n + 4 * weights, 4 * weights, 0.051);
}

TEST_F(Traffic, OfResizingAndPatchesIsThePixels) {
  const std::int64_t in = 200, side = 112, patch = 14;
  const std::size_t pixels = side * side * 3;
  const std::size_t between = 4 * side * in * 3;  // after the horizontal pass
  const Tensor canvas = floats({side, side, 3});
  expect_dram("ResizeBicubic", {in, in, 3},
              ResizeBicubic{
                  .x = tensor(DType::u8, {in, in, 3}), .height = side, .width = side, .y = canvas},
              in * in * 3 + between, between + 4 * pixels);
  expect_dram("NormalisePatchify", {side, side, 3},
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
  const Shape shape = {tokens, hidden};
  expect_dram("EmbeddingForward", shape,
              EmbeddingForward{.table = table, .sources = sources, .y = y}, 2 * n + names, 2 * n);
  // The sort by id is a library's, and not counted.
  expect_dram("EmbeddingBackward", shape,
              EmbeddingBackward{.d_y = y, .sources = sources, .d_table = d_table}, 6 * n + names,
              4 * n);
  // Of other ranks' ids a rank's shard makes zeros.
  const auto foreign =
      static_cast<std::size_t>(std::ranges::count_if(ids, [&](int id) { return id >= vocab / 2; }));
  expect_dram("EmbeddingForward of a shard", shape,
              EmbeddingForward{.table = bf16s({vocab / 2, hidden}),
                               .sources = sources,
                               .shard = {.first_id = 0, .vocabulary = vocab},
                               .y = y},
              2 * (tokens - foreign) * hidden + names, 2 * n);
  const Tensor indices = words(every_other);
  expect_dram("GatherRows", half.shape(), GatherRows{.x = y, .indices = indices, .y = half}, n, n);
  expect_dram("ScatterRows", shape, ScatterRows{.x = half, .indices = indices, .y = y}, n, 2 * n);
}

// Pictures among text: every other run of 64 tokens.
TEST_F(Traffic, OfVisualTokensIsTheRowsNamed) {
  const std::int64_t tokens = 512, pictured = tokens / 2, vocab = 700, hidden = 1024;
  std::vector<int> ids;
  for (int t = 0, visual = 0; t < tokens; ++t)
    ids.push_back(t / 64 % 2 ? -1 - visual++ : t * 97 % static_cast<int>(vocab));
  const Shape shape = {tokens, hidden}, of_pictures = {pictured, hidden};
  const Tensor sources = words(ids), y = bf16s(shape);
  const std::size_t n = tokens * hidden, m = pictured * hidden, names = 4 * tokens;
  expect_dram("EmbeddingForward with visual tokens", shape,
              EmbeddingForward{.table = bf16s({vocab, hidden}),
                               .visual = bf16s(of_pictures),
                               .sources = sources,
                               .y = y},
              2 * n + names, 2 * n);
  // Through the inverse of their names, a word a row.
  const std::size_t inverse = 4 * pictured;
  expect_dram("EmbeddingBackward of visual tokens", shape,
              EmbeddingBackward{.d_y = y, .sources = sources, .d_visual = bf16s(of_pictures)},
              2 * m + names + inverse, 2 * m + inverse);
}

TEST_F(Traffic, OfClassTokensIsThePatches) {
  const Shape with = {4, 65, 512}, without = {4, 64, 512};
  const std::size_t m = 4 * 64 * 512;
  const Tensor patches = bf16s(without), positions = bf16s({65, 512}), out = bf16s(with);
  expect_dram(
      "PrependClassForward", with,
      PrependClassForward{
          .patches = patches, .class_token = bf16s({512}), .positions = positions, .y = out},
      2 * m + 2 * 66 * 512, 2 * m + 2 * 4 * 512);
  expect_dram("DropClassForward", with,
              DropClassForward{.x = out, .positions = bf16s({64, 512}), .y = patches},
              2 * m + 2 * 64 * 512, 2 * m);
  // Sums of the gradients of positions are read and written; so is the class token's.
  const Tensor d_positions = floats({65, 512}), d_class_token = floats({512});
  expect_dram("PrependClassBackward", with,
              PrependClassBackward{.d_y = out,
                                   .d_patches = patches,
                                   .d_class_token = d_class_token,
                                   .d_positions = d_positions},
              2 * m + 2 * 4 * 512 + 4 * 66 * 512, 2 * m + 4 * 66 * 512);
  const Tensor d_kept = floats({64, 512});
  expect_dram("DropClassBackward", with,
              DropClassBackward{.d_y = patches, .d_x = out, .d_positions = d_kept},
              2 * m + 4 * 64 * 512, 2 * m + 2 * 4 * 512 + 4 * 64 * 512);
}

TEST_F(Traffic, OfCrossEntropyIsEachLogitOnceWhileARowFitsSharedMemory) {
  const Shape shape = {4, 16384};
  const std::size_t n = 4 * 16384;
  CrossEntropy op{
      .logits = floats(shape), .targets = tensor(DType::i32, {4}), .losses = floats({4})};
  expect_packed_bytes("CrossEntropy", shape, op, 4 * n, 0);
  op.d_logits = bf16s(shape);
  expect_packed_bytes("CrossEntropy to bf16", shape, op, 4 * n, 2 * n);
  const Tensor in_place = floats(shape);
  op.logits = in_place, op.d_logits = in_place;
  expect_packed_bytes("CrossEntropy in place", shape, op, 4 * n, 4 * n);
}

// What of a row shared memory does not hold is read again, which finds it in the L2: DRAM sees it once.
TEST_F(Traffic, OfCrossEntropyOfLongRowsIsEachLogitOnceFromDram) {
  const std::int64_t rows = 4, vocab = 49152;
  const std::size_t n = rows * vocab, words_of_rows = 4 * rows;
  const Shape shape = {rows, vocab};
  const Tensor logits = floats(shape), targets = tensor(DType::i32, {rows});
  CrossEntropy op{.logits = logits, .targets = targets, .losses = floats({rows})};
  expect_dram("CrossEntropy", shape, op, 4 * n + words_of_rows, words_of_rows);
  op.d_logits = bf16s(shape);
  const simt::Counters counters =
      expect_dram("CrossEntropy to bf16", shape, op, 4 * n + words_of_rows, 2 * n + words_of_rows);
  // Half of the row and a little more is asked for twice.
  const std::size_t again = rows * (vocab - 24 * 1024 + 64);
  EXPECT_GE(32 * counters.loads.sectors, 4 * (n + again));
  EXPECT_LE(32 * counters.loads.sectors, 4 * (n + again) * 21 / 20);
  op.d_logits = logits;
  expect_dram("CrossEntropy in place", shape, op, 4 * n + words_of_rows, 4 * n + words_of_rows);
}

TEST_F(Traffic, OfOptimizersIsWhatTheirHeadersSay) {
  const Shape shape = {512, 1024};
  const std::size_t n = 512 * 1024;
  const Tensor w = floats(shape), g = floats(shape), m = floats(shape), v = floats(shape);
  const Tensor copy = bf16s(shape), row = floats({512}), col = floats({1024});
  const Tensor scale = floats({1});
  AdamW adamw{.weights = w, .gradients = g, .m = m, .v = v, .gradient_scale = scale};
  expect_packed_bytes("AdamW", shape, adamw, 16 * n, 12 * n);
  adamw.copy = copy;
  expect_packed_bytes("AdamW with a bf16 copy", shape, adamw, 16 * n, 14 * n);
  const AdaFactor factored{.weights = w,
                           .gradients = g,
                           .v_row = row,
                           .v_col = col,
                           .copy = copy,
                           .gradient_scale = scale};
  const simt::Counters counters =
      expect_dram("AdaFactor with a bf16 copy", shape, factored, 16 * n, 6 * n);
  // The factors of a tile's rows and columns are asked for by each warp: caches serve all but the first.
  EXPECT_LE(32 * (counters.loads.sectors + counters.stores.sectors), 22 * n * 27 / 25);
  expect_bytes("AdaFactor, unfactored", shape,
               AdaFactor{.weights = w, .gradients = g, .v = v, .gradient_scale = scale}, 20 * n,
               8 * n);
}

}  // namespace
}  // namespace orchard::testing
