// Rows on their way between ranks, against plain loops.
#include "kernels/permute/exchange.h"

#include "tests/kernels/device_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

struct Case {};
using Exchange = DeviceTest<Case>;

TEST_P(Exchange, ChoicesBecomeTheirTargets) {
  Guarded experts = integers({3, 2}, std::vector<int>{2, 0, -1, 1, -1, -1});
  Guarded table = integers({3, 2}, std::vector<int>{7, 8, -1, 5, 7, 1});
  Guarded targets(DType::i32, {3, 4});
  OnDevice experts_d = on_device(experts), table_d = on_device(table),
           targets_d = on_device(targets);
  MapChoices op{.experts = experts_d, .table = table_d, .targets = targets_d};
  run_and_download(stream(), op, {&targets_d});
  EXPECT_EQ(targets.values(), (std::vector<double>{7, 1, 7, 8, -1, -1, -1, 5, -1, -1, -1, -1}));
  op.repeats = Repeats::drop;
  run_and_download(stream(), op, {&targets_d});
  EXPECT_EQ(targets.values(), (std::vector<double>{7, 1, -1, 8, -1, -1, -1, 5, -1, -1, -1, -1}));
}

// Tables that fit shared memory and one that does not, and more targets than a block has.
TEST_P(Exchange, TargetsAreTheTablesRowsWhateverItsSize) {
  for (const auto& [table_rows, parts] : {std::pair{64, 1}, {512, 8}, {513, 8}}) {
    const std::int64_t tokens = 173, k = 3;
    std::vector<int> chosen(static_cast<std::size_t>(tokens * k));
    for (std::size_t i = 0; i < chosen.size(); ++i)
      chosen[i] = static_cast<int>(i * 37) % (table_rows + 1) - 1;
    std::vector<int> rows(static_cast<std::size_t>(table_rows * parts));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int>(i * 7 % 1009);
    std::vector<double> expected;
    for (const int expert : chosen) {
      for (int p = 0; p < parts; ++p)
        expected.push_back(expert < 0 ? -1 : rows[static_cast<std::size_t>(expert * parts + p)]);
    }
    Guarded experts = integers({tokens, k}, chosen), table = integers({table_rows, parts}, rows);
    Guarded targets(DType::i32, {tokens, k * parts});
    OnDevice experts_d = on_device(experts), table_d = on_device(table),
             targets_d = on_device(targets);
    run_and_download(stream(),
                     MapChoices{.experts = experts_d, .table = table_d, .targets = targets_d},
                     {&targets_d});
    EXPECT_EQ(targets.values(), expected) << table_rows << " experts in " << parts << " parts";
  }
}

TEST_P(Exchange, ChoicesOfNobody) {
  Guarded experts(DType::i32, {0, 2}), table = integers({1, 1}, std::vector<int>{0});
  Guarded targets(DType::i32, {0, 2});
  OnDevice experts_d = on_device(experts), table_d = on_device(table),
           targets_d = on_device(targets);
  EXPECT_NO_THROW(run_and_download(
      stream(), MapChoices{.experts = experts_d, .table = table_d, .targets = targets_d},
      {&targets_d}));
}

// Runs of every awkward length, with gaps and zeros between them, in an order that is not that of y.
TEST_P(Exchange, RunsAreCopiedInAnyOrderAndTheRestStays) {
  const std::vector<int> lengths = {0, 1, 31, 32, 33, 97, 0, 5};
  std::vector<int> runs;
  int from = 400, to = 3;
  for (const int length : lengths) {
    from -= length + 1;
    runs.insert(runs.end(), {length == 32 ? -1 : from, to, length});
    to += length + 2;
  }
  for (const auto& [dtype, width] : {std::pair{DType::f32, 7},
                                     {DType::bf16, 33},
                                     {DType::bf16, 2056},
                                     {DType::u8, 1},
                                     {DType::u8, 16}}) {
    Guarded x =
        dtype == DType::u8 ? zeros(dtype, {400, width}) : random_normal(dtype, {400, width}, 3);
    for (std::int64_t i = 0; dtype == DType::u8 && i < x.size(); ++i)
      x.set(i, static_cast<double>(i % 251));
    Guarded y(dtype, {to, width});
    Guarded list = integers({static_cast<std::int64_t>(lengths.size()), 3}, runs);
    std::vector<double> expected = y.values();
    for (std::size_t r = 0; r < runs.size(); r += 3) {
      for (int i = 0; i < runs[r + 2] * width; ++i)
        expected[static_cast<std::size_t>(runs[r + 1] * width + i)] =
            runs[r] < 0 ? 0 : x.at(runs[r] * width + i);
    }
    OnDevice x_d = on_device(x), list_d = on_device(list), y_d = on_device(y);
    run_and_download(stream(), CopyRuns{.x = x_d, .runs = list_d, .y = y_d}, {&y_d});
    EXPECT_EQ(y.values(), expected) << name_of(dtype);
  }
}

TEST_P(Exchange, PackedRowsCarryTheirTargets) {
  for (const auto& [dtype, hidden, slots] :
       {std::tuple{DType::f32, 5, 2}, {DType::bf16, 7, 1}, {DType::bf16, 64, 8}}) {
    Guarded x = random_normal(dtype, {40, hidden}, 1), targets(DType::i32, {40, slots});
    for (std::int64_t i = 0; i < targets.size(); ++i)
      targets.set(i, static_cast<double>(i % 9 - 1));
    std::vector<int> tokens(50, -1);  // a plan's list may be longer
    for (std::size_t i = 0; i < 35; ++i) tokens[i] = static_cast<int>(i * 17 % 40);
    Guarded source = integers({50}, tokens);
    Guarded packed(DType::u8, {35, packed_row_bytes(hidden, dtype, slots)});
    Guarded x_back(dtype, {35, hidden}), targets_back(DType::i32, {35, slots});
    OnDevice x_d = on_device(x), targets_d = on_device(targets), source_d = on_device(source),
             packed_d = on_device(packed), x_back_d = on_device(x_back),
             targets_back_d = on_device(targets_back);
    run_repeatedly(stream(),
                   PackRows{.x = x_d, .targets = targets_d, .source = source_d, .packed = packed_d},
                   {&packed_d});
    run_and_download(stream(),
                     UnpackRows{.packed = packed_d, .x = x_back_d, .targets = targets_back_d},
                     {&x_back_d, &targets_back_d});
    // The layout, with zeros where nothing is.
    const std::int64_t bytes = packed_row_bytes(hidden, dtype, slots);
    const std::int64_t offset = packed_targets_offset(hidden, dtype);
    const std::int64_t row_bytes = hidden * static_cast<std::int64_t>(size_of(dtype));
    for (std::int64_t i = 0; i < packed.size(); ++i) {
      const std::int64_t at = i % bytes;
      if ((at >= row_bytes && at < offset) || at >= offset + 4 * slots) {
        ASSERT_EQ(packed.at(i), 0) << "byte " << at << " of row " << i / bytes;
      }
    }
    for (int r = 0; r < 35; ++r) {
      const int token = tokens[static_cast<std::size_t>(r)];
      for (int i = 0; i < hidden; ++i)
        ASSERT_EQ(x_back.at(r * hidden + i), x.at(token * hidden + i)) << "row " << r;
      for (int i = 0; i < slots; ++i)
        ASSERT_EQ(targets_back.at(r * slots + i), targets.at(token * slots + i)) << "row " << r;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, Exchange,
                         ::testing::Combine(every_device(), ::testing::Values(Case{})),
                         device_test_name<Case>);

TEST(ExchangeErrors, ARunOutsideItsRowsIsNamed) {
  Guarded x = zeros(DType::f32, {4, 2}), y = zeros(DType::f32, {4, 2});
  Guarded runs = integers({2, 3}, std::vector<int>{0, 0, 4, 2, 2, 3});
  const auto stream = cpu_device().make_stream();
  EXPECT_EQ(message_of([&] { run(*stream, CopyRuns{.x = x, .runs = runs, .y = y}); }),
            "CopyRuns: run 1 takes 3 rows from 2 to 2, x has 4, y 4");
}

}  // namespace
}  // namespace orchard::testing
