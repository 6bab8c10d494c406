// Embedding, row gathers and scatters, and the class token, against plain loops.
#include "kernels/embedding/embedding.h"

#include <omp.h>

#include "tests/kernels/thread_orders.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

struct EmbeddingCase {
  DType dtype;
  std::int64_t tokens, vocab, visual, hidden;
  int shift = 0;  // elements by which rows of [hidden] miss their alignment
};

class Embedding : public DeviceTest<EmbeddingCase> {
 protected:
  // Random ids, some often; visual rows in falling order at every third token while they last (one
  // row of them stays unnamed).
  Guarded sources() const {
    const auto [dtype, tokens, vocab, visual, hidden, shift] = parameter();
    Guarded out(DType::i32, {tokens});
    std::mt19937 engine(3);
    std::int64_t next = visual - 1;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const bool is_visual = t % 3 == 1 && next > 0;
      out.set(t, is_visual ? static_cast<double>(-1 - next--)
                           : engine() % static_cast<unsigned>(t % 2 ? vocab : (vocab + 3) / 4));
    }
    return out;
  }
};

TEST_P(Embedding, ForwardCopiesTableAndVisualRows) {
  const auto [dtype, tokens, vocab, visual, hidden, shift] = parameter();
  Guarded table = random_normal(dtype, {vocab, hidden}, 1);
  Guarded pictures = random_normal(dtype, {visual, hidden}, 2);
  Guarded ids = sources(), y(dtype, {tokens, hidden});
  OnDevice table_d(stream(), table, parameter().shift),
      pictures_d(stream(), pictures, parameter().shift), ids_d(stream(), ids);
  OnDevice y_d(stream(), y, parameter().shift);
  run_and_download(stream(),
                   EmbeddingForward{.table = table_d,
                                    .visual = visual ? pictures_d.tensor() : Tensor(),
                                    .sources = ids_d,
                                    .y = y_d},
                   {&y_d});
  for (std::int64_t i = 0; i < tokens * hidden; ++i) {
    const auto id = static_cast<std::int64_t>(ids.at(i / hidden));
    const std::int64_t column = i % hidden;
    ASSERT_EQ(y.at(i),
              id >= 0 ? table.at(id * hidden + column) : pictures.at((-1 - id) * hidden + column))
        << "token " << i / hidden;
  }
}

// Whatever the cut, the shards' rows add up to the whole, of which each is one rank's.
TEST_P(Embedding, ShardsOfTheVocabularyMakeUpTheWhole) {
  const auto [dtype, tokens, vocab, visual, hidden, shift] = parameter();
  const std::int64_t half = vocab / 2;  // 0 of a vocabulary of one
  Guarded table = random_normal(dtype, {vocab, hidden}, 1);
  Guarded pictures = random_normal(dtype, {visual, hidden}, 2);
  Guarded d_y = random_normal(dtype, {tokens, hidden}, 3), ids = sources();
  Guarded whole(dtype, {tokens, hidden}), y(dtype, {tokens, hidden});
  Guarded d_whole = random_normal(DType::f32, {vocab, hidden}, 4), d_table = d_whole;
  OnDevice table_d(stream(), table, shift), pictures_d(stream(), pictures, shift),
      d_y_d(stream(), d_y, shift), ids_d(stream(), ids), whole_d(stream(), whole, shift),
      y_d(stream(), y, shift), d_whole_d(stream(), d_whole), d_table_d(stream(), d_table);
  const Tensor shown = visual ? pictures_d.tensor() : Tensor();
  run_and_download(
      stream(), EmbeddingForward{.table = table_d, .visual = shown, .sources = ids_d, .y = whole_d},
      {&whole_d});
  run_and_download(stream(),
                   EmbeddingBackward{.d_y = d_y_d, .sources = ids_d, .d_table = d_whole_d},
                   {&d_whole_d});
  Guarded sum = zeros(DType::f32, {tokens, hidden});
  const std::pair<std::int64_t, std::int64_t> cuts[] = {{0, half}, {half, vocab - half}};
  for (const auto& [first, count] : cuts) {
    const VocabularyShard shard{.first_id = first, .vocabulary = vocab};
    run_and_download(stream(),
                     EmbeddingForward{.table = table_d.tensor().slice(first, count),
                                      .visual = first == 0 ? shown : Tensor(),
                                      .sources = ids_d,
                                      .shard = shard,
                                      .y = y_d},
                     {&y_d});
    run_and_download(stream(),
                     EmbeddingBackward{.d_y = d_y_d,
                                       .sources = ids_d,
                                       .shard = shard,
                                       .d_table = d_table_d.tensor().slice(first, count)},
                     {&d_table_d});
    for (std::int64_t i = 0; i < sum.size(); ++i) {
      ASSERT_TRUE(sum.at(i) == 0 || y.at(i) == 0);
      sum.set(i, sum.at(i) + y.at(i));
    }
  }
  EXPECT_EQ(sum.values(), whole.values());
  EXPECT_TRUE(d_table == d_whole);
}

TEST_P(Embedding, BackwardAddsRepeatedIdsInTokenOrder) {
  const auto [dtype, tokens, vocab, visual, hidden, shift] = parameter();
  Guarded d_y = random_normal(dtype, {tokens, hidden}, 3), ids = sources();
  const Guarded before = random_normal(DType::f32, {vocab, hidden}, 4);
  Guarded d_table = before, d_visual(dtype, {visual, hidden});
  OnDevice d_y_d(stream(), d_y, parameter().shift), ids_d(stream(), ids);
  OnDevice d_table_d(stream(), d_table, parameter().shift),
      d_visual_d(stream(), d_visual, parameter().shift);
  run_and_download(stream(),
                   EmbeddingBackward{.d_y = d_y_d,
                                     .sources = ids_d,
                                     .d_table = d_table_d,
                                     .d_visual = visual ? d_visual_d.tensor() : Tensor()},
                   {&d_table_d, &d_visual_d});

  // The order is part of the contract, so the reference adds floats and nothing may differ.
  Guarded expected_table = before, expected_visual = zeros(dtype, {visual, hidden});
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto id = static_cast<std::int64_t>(ids.at(t));
    for (std::int64_t i = 0; i < hidden; ++i) {
      const double gradient = d_y.at(t * hidden + i);
      if (id < 0) {
        expected_visual.set((-1 - id) * hidden + i, gradient);
      } else {
        const std::int64_t at = id * hidden + i;
        expected_table.set(
            at, static_cast<float>(expected_table.at(at)) + static_cast<float>(gradient));
      }
    }
  }
  EXPECT_TRUE(d_table == expected_table);
  if (visual) {
    EXPECT_TRUE(d_visual == expected_visual);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Embedding,
    ::testing::Combine(
        every_device(),
        ::testing::Values(
            EmbeddingCase{DType::f32, 1, 1, 0, 1}, EmbeddingCase{DType::f32, 0, 5, 2, 8},
            EmbeddingCase{DType::f32, 61, 23, 7, 65}, EmbeddingCase{DType::f32, 200, 5, 144, 257},
            EmbeddingCase{DType::bf16, 61, 23, 7, 17}, EmbeddingCase{DType::bf16, 97, 31, 12, 200},
            EmbeddingCase{DType::f32, 530, 2, 0, 8}, EmbeddingCase{DType::bf16, 300, 3, 9, 132},
            EmbeddingCase{DType::bf16, 19, 7, 5, 40, 1}, EmbeddingCase{DType::f32, 19, 7, 5, 40, 1},
            EmbeddingCase{DType::bf16, 2100, 70000, 40, 24})),
    device_test_name<EmbeddingCase>);

TEST(EmbeddingOnGpu, AddsAlikeInEveryOrderOfThreads) {
  Guarded d_y = random_normal(DType::bf16, {400, 40}, 1), ids(DType::i32, {400});
  for (std::int64_t t = 0; t < 400; ++t) ids.set(t, static_cast<double>(t * t % 300 - 7));
  expect_same_in_every_thread_order([&](Stream& stream) {
    Guarded d_table = random_normal(DType::f32, {300, 40}, 2);
    OnDevice d_y_d(stream, d_y), ids_d(stream, ids), d_table_d(stream, d_table);
    run(stream, EmbeddingBackward{.d_y = d_y_d, .sources = ids_d, .d_table = d_table_d});
    d_table_d.download();
    stream.synchronize();
    return std::vector<Guarded>{d_table};
  });
}

TEST(EmbeddingErrors, NameTheTokenItsIdAndTheVocabulary) {
  Guarded table = zeros(DType::f32, {10, 4}), visual = zeros(DType::f32, {2, 4});
  Guarded sources = integers({3}, std::vector<int>{9, -2, 10}), y = zeros(DType::f32, {3, 4});
  const auto stream = cpu_device().make_stream();
  const auto forward = [&] {
    run(*stream, EmbeddingForward{.table = table, .visual = visual, .sources = sources, .y = y});
  };
  EXPECT_EQ(message_of(forward),
            "EmbeddingForward: token 2 has id 10, but the vocabulary has 10 entries");
  sources = integers({3}, std::vector<int>{9, -3, 0});
  EXPECT_EQ(
      message_of(forward),
      "EmbeddingForward: token 1 (source -3) names visual row 2, but there are 2 visual rows");
  sources = integers({3}, std::vector<int>{-1, 0, -1});
  EXPECT_EQ(message_of(forward), "");
  EXPECT_EQ(message_of([&] {
              run(*stream, EmbeddingBackward{.d_y = y, .sources = sources, .d_visual = visual});
            }),
            "EmbeddingBackward (d_visual): entries 0 and 2 both name row 0");
}

// The table of a 3B model, of which 3 rows are used: the address space is reserved but never
// touched, so a pass over the table would take 600 MB and show as resident memory.
TEST(EmbeddingCost, OnlyNamedRowsOfALargeTableAreTouched) {
  constexpr std::int64_t vocab = 49152, hidden = 3072;
  const std::unique_ptr<float[]> untouched(new float[vocab * hidden]);
  for (const std::int64_t id : {0, 20000, 49151}) {
    std::fill_n(untouched.get() + id * hidden, hidden, 1.0f);
  }
  const Tensor d_table(untouched.get(), DType::f32, {vocab, hidden}, DeviceKind::cpu);
  Guarded ids = integers({4}, std::vector<int>{0, 49151, 20000, 0});
  Guarded d_y = random_normal(DType::f32, {4, hidden}, 5);
  const auto stream = cpu_device().make_stream();
  const auto resident_pages = [] {
    std::int64_t total = 0, resident = 0;
    if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
      if (std::fscanf(file, "%ld %ld", &total, &resident) != 2) resident = 0;
      std::fclose(file);
    }
    return resident;
  };
  const std::int64_t before = resident_pages();
  run(*stream, EmbeddingBackward{.d_y = d_y, .sources = ids, .d_table = d_table});
  stream->synchronize();
  EXPECT_LT(resident_pages() - before, 5000);  // 20 MB at 4 KB a page; the table has 590 MB
  EXPECT_EQ(untouched[5],
            static_cast<float>(1 + d_y.at(5)) + static_cast<float>(d_y.at(3 * hidden + 5)));
}

struct RowsCase {
  DType dtype;
  std::int64_t rows, cols;
  int shift = 0;
};
using Rows = DeviceTest<RowsCase>;

TEST_P(Rows, GatherAndScatterAreInverse) {
  const auto [dtype, rows, cols, shift] = parameter();
  Guarded x = random_normal(dtype, {rows, cols}, 1), y(dtype, {rows + 2, cols}),
          back(dtype, {rows, cols});
  Guarded indices(DType::i32, {rows + 2});  // rows in reverse, with a -1 at either end
  for (std::int64_t i = 0; i < rows + 2; ++i) {
    indices.set(i, i == 0 || i == rows + 1 ? -1.0 : static_cast<double>(rows - i));
  }
  OnDevice x_d(stream(), x, parameter().shift), y_d(stream(), y, parameter().shift),
      back_d(stream(), back, parameter().shift);
  OnDevice indices_d(stream(), indices);
  run_and_download(stream(), GatherRows{.x = x_d, .indices = indices_d, .y = y_d}, {&y_d});
  run_and_download(stream(), ScatterRows{.x = y_d, .indices = indices_d, .y = back_d}, {&back_d});
  for (std::int64_t i = 0; i < (rows + 2) * cols; ++i) {
    const auto index = static_cast<std::int64_t>(indices.at(i / cols));
    ASSERT_EQ(y.at(i), index < 0 ? 0 : x.at(index * cols + i % cols)) << "row " << i / cols;
  }
  EXPECT_TRUE(back == x);
}

TEST_P(Rows, ScatterZeroesRowsThatNoIndexNames) {
  const auto [dtype, rows, cols, shift] = parameter();
  Guarded x = random_normal(dtype, {1, cols}, 1), y(dtype, {rows, cols});
  Guarded indices = integers({1}, std::vector<int>{static_cast<int>(rows - 1)});
  if (rows == 0) indices.set(0, -1);
  OnDevice x_d(stream(), x, parameter().shift), y_d(stream(), y, parameter().shift),
      indices_d(stream(), indices);
  run_and_download(stream(), ScatterRows{.x = x_d, .indices = indices_d, .y = y_d}, {&y_d});
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    ASSERT_EQ(y.at(i), i / cols == rows - 1 ? x.at(i % cols) : 0) << "row " << i / cols;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Rows,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(RowsCase{DType::f32, 1, 1},
                                                              RowsCase{DType::f32, 0, 3},
                                                              RowsCase{DType::f32, 37, 19},
                                                              RowsCase{DType::bf16, 50, 33},
                                                              RowsCase{DType::bf16, 9, 2056},
                                                              RowsCase{DType::bf16, 7, 22},
                                                              RowsCase{DType::bf16, 7, 40, 1},
                                                              RowsCase{DType::bf16, 7, 40, 2})),
                         device_test_name<RowsCase>);

TEST(RowsErrors, NameTheIndex) {
  Guarded x = zeros(DType::f32, {2, 3}), y = zeros(DType::f32, {2, 3});
  Guarded indices = integers({2}, std::vector<int>{1, 2});
  const auto stream = cpu_device().make_stream();
  EXPECT_EQ(message_of([&] { run(*stream, GatherRows{.x = x, .indices = indices, .y = y}); }),
            "GatherRows: indices[1] is 2, outside [-1, 2)");
  indices.set(1, 1);
  EXPECT_EQ(message_of([&] { run(*stream, ScatterRows{.x = x, .indices = indices, .y = y}); }),
            "ScatterRows: entries 0 and 1 both name row 1");
}

struct ClassCase {
  DType dtype;
  std::int64_t images, patches, width;
  int shift = 0;
};

class ClassToken : public DeviceTest<ClassCase> {
 protected:
  Shape with_class() const {
    return {parameter().images, parameter().patches + 1, parameter().width};
  }
  Shape without_class() const {
    return {parameter().images, parameter().patches, parameter().width};
  }
  Shape positions() const { return {parameter().patches + 1, parameter().width}; }
  // Gradients of positions: an fp32 sum over the images and what was there before.
  double sum_bound() const {
    return 4 * static_cast<double>(parameter().images + 1) * unit_roundoff(DType::f32);
  }
};

TEST_P(ClassToken, PrependAddsPositionsToAllRows) {
  const auto [dtype, images, patches, width, shift] = parameter();
  Guarded x = random_normal(dtype, without_class(), 1), token = random_normal(dtype, {width}, 2);
  Guarded table = random_normal(dtype, positions(), 3), y(dtype, with_class());
  OnDevice x_d(stream(), x, parameter().shift), token_d(stream(), token, parameter().shift),
      table_d(stream(), table, parameter().shift), y_d(stream(), y, parameter().shift);
  run_repeatedly(
      stream(),
      PrependClassForward{.patches = x_d, .class_token = token_d, .positions = table_d, .y = y_d},
      {&y_d});
  std::vector<double> expected;
  for (std::int64_t n = 0; n < images; ++n) {
    for (std::int64_t i = 0; i < (patches + 1) * width; ++i) {
      expected.push_back(table.at(i) +
                         (i < width ? token.at(i) : x.at((n * patches - 1) * width + i)));
    }
  }
  expect_close(y, expected, unit_roundoff(dtype), "y");  // one rounding
}

TEST_P(ClassToken, PrependBackwardSumsOverImages) {
  const auto [dtype, images, patches, width, shift] = parameter();
  Guarded d_y = random_normal(dtype, with_class(), 4), d_patches(dtype, without_class());
  Guarded d_token = random_normal(DType::f32, {width}, 5);
  Guarded d_positions = random_normal(DType::f32, positions(), 6);
  std::vector<double> expected_token = d_token.values(), expected_positions = d_positions.values();
  OnDevice d_y_d(stream(), d_y, parameter().shift),
      d_patches_d(stream(), d_patches, parameter().shift);
  OnDevice d_token_d(stream(), d_token, parameter().shift),
      d_positions_d(stream(), d_positions, parameter().shift);
  PrependClassBackward op{.d_y = d_y_d,
                          .d_patches = d_patches_d,
                          .d_class_token = d_token_d,
                          .d_positions = d_positions_d};
  run_repeatedly(stream(), op, {&d_patches_d, &d_token_d, &d_positions_d});
  for (std::int64_t n = 0; n < images; ++n) {
    for (std::int64_t i = 0; i < (patches + 1) * width; ++i) {
      const double gradient = d_y.at(n * (patches + 1) * width + i);
      expected_positions[static_cast<std::size_t>(i)] += gradient;
      if (i < width) {
        expected_token[static_cast<std::size_t>(i)] += gradient;
      } else {
        ASSERT_EQ(d_patches.at((n * patches - 1) * width + i), gradient);
      }
    }
  }
  // Sums may cancel: their terms have size one.
  expect_close(d_token, expected_token, sum_bound(), "d_class_token", 1);
  expect_close(d_positions, expected_positions, sum_bound(), "d_positions", 1);

  const Guarded first = d_patches;
  op.d_class_token = op.d_positions = {};
  run_and_download(stream(), op, {&d_patches_d});
  EXPECT_TRUE(first == d_patches) << "d_patches depends on whether the other gradients are wanted";
}

TEST_P(ClassToken, DropRemovesTheClassRowAndAddsPositions) {
  const auto [dtype, images, patches, width, shift] = parameter();
  Guarded x = random_normal(dtype, with_class(), 7), y(dtype, without_class());
  Guarded table = random_normal(dtype, {patches, width}, 8);
  OnDevice x_d(stream(), x, parameter().shift), table_d(stream(), table, parameter().shift),
      y_d(stream(), y, parameter().shift);
  for (const bool with_positions : {false, true}) {
    run_repeatedly(
        stream(),
        DropClassForward{
            .x = x_d, .positions = with_positions ? table_d.tensor() : Tensor(), .y = y_d},
        {&y_d});
    std::vector<double> expected;
    for (std::int64_t n = 0; n < images; ++n) {
      for (std::int64_t i = 0; i < patches * width; ++i) {
        expected.push_back(x.at((n * (patches + 1) + 1) * width + i) +
                           (with_positions ? table.at(i) : 0));
      }
    }
    expect_close(y, expected, unit_roundoff(dtype), "y");  // one rounding
  }
}

TEST_P(ClassToken, DropBackwardZeroesTheClassRow) {
  const auto [dtype, images, patches, width, shift] = parameter();
  Guarded d_y = random_normal(dtype, without_class(), 9), d_x(dtype, with_class());
  Guarded d_positions = random_normal(DType::f32, {patches, width}, 10);
  std::vector<double> expected_positions = d_positions.values();
  OnDevice d_y_d(stream(), d_y, parameter().shift), d_x_d(stream(), d_x, parameter().shift),
      d_positions_d(stream(), d_positions, parameter().shift);
  run_repeatedly(stream(),
                 DropClassBackward{.d_y = d_y_d, .d_x = d_x_d, .d_positions = d_positions_d},
                 {&d_x_d, &d_positions_d});
  for (std::int64_t i = 0; i < d_x.size(); ++i) {
    const std::int64_t n = i / ((patches + 1) * width), j = i % ((patches + 1) * width) - width;
    const double gradient = j < 0 ? 0 : d_y.at(n * patches * width + j);
    ASSERT_EQ(d_x.at(i), gradient);
    if (j >= 0) expected_positions[static_cast<std::size_t>(j)] += gradient;
  }
  expect_close(d_positions, expected_positions, sum_bound(), "d_positions", 1);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ClassToken,
    ::testing::Combine(
        every_device(),
        ::testing::Values(ClassCase{DType::f32, 1, 1, 1}, ClassCase{DType::f32, 0, 4, 8},
                          ClassCase{DType::f32, 3, 0, 5}, ClassCase{DType::f32, 5, 9, 33},
                          ClassCase{DType::f32, 2, 5, 64}, ClassCase{DType::bf16, 4, 16, 31},
                          ClassCase{DType::bf16, 2, 5, 64}, ClassCase{DType::bf16, 2, 5, 64, 1},
                          ClassCase{DType::bf16, 19, 3, 12}, ClassCase{DType::f32, 6, 2, 8, 3})),
    device_test_name<ClassCase>);

TEST(EmbeddingDeterminism, DoesNotDependOnTheNumberOfThreads) {
  Guarded d_y = random_normal(DType::f32, {300, 333}, 1), ids(DType::i32, {300});
  for (std::int64_t t = 0; t < 300; ++t) ids.set(t, static_cast<double>(t * t % 13));
  Guarded serial = zeros(DType::f32, {13, 333}), threaded = serial;
  const auto stream = cpu_device().make_stream();
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  run(*stream, EmbeddingBackward{.d_y = d_y, .sources = ids, .d_table = serial});
  omp_set_num_threads(5);
  run(*stream, EmbeddingBackward{.d_y = d_y, .sources = ids, .d_table = threaded});
  omp_set_num_threads(before);
  stream->synchronize();
  EXPECT_TRUE(serial == threaded);
}

}  // namespace
}  // namespace orchard::testing
