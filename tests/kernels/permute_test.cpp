// Dispatch and combine against a plain walk over tokens and choices.
#include "kernels/permute/permute.h"

#include <omp.h>

#include "tests/kernels/op_test.h"

namespace orchard::testing {
namespace {

enum class Routing { random, one_expert, none, some_dropped };

struct Case {
  DType dtype;
  std::int64_t tokens, k, experts, hidden;
  Routing routing;
  std::int64_t parts = 1;  // rows of a choice; `experts` counts those of all parts
  std::int64_t multiple = row_multiple;

  std::int64_t slots() const { return k * parts; }
};

Guarded route(const Case& c) {
  Guarded out(DType::i32, {c.tokens, c.slots()});
  std::mt19937 engine(11);
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    const auto first = static_cast<std::int64_t>(engine() % static_cast<unsigned>(c.experts));
    for (std::int64_t j = 0; j < c.slots(); ++j) {
      // Distinct within a token, as a router's choices are.
      std::int64_t expert = (c.routing == Routing::one_expert ? c.experts - 1 : first) + j * 3;
      if (c.routing == Routing::none) expert = -1;
      if (c.routing == Routing::some_dropped && (engine() % 3 == 0 || t % 7 == 6)) expert = -1;
      out.set(t * c.slots() + j, expert < 0 ? -1.0 : static_cast<double>(expert % c.experts));
    }
  }
  return out;
}

class Permute : public ::testing::TestWithParam<Case> {
 protected:
  Permute()
      : experts(route(GetParam())),
        row_offsets(DType::i32, {GetParam().experts + 1}),
        source(DType::i32, {max_rows()}),
        slot(DType::i32, {GetParam().tokens, GetParam().slots()}),
        stream(cpu_device().make_stream()) {
    run(*stream, plan());
    stream->synchronize();
  }

  PermutePlan plan() {
    return {.experts = experts,
            .row_offsets = row_offsets,
            .source = source,
            .slot = slot,
            .multiple = GetParam().multiple};
  }
  static std::int64_t max_rows() {
    return max_expert_rows(GetParam().tokens, GetParam().slots(), GetParam().experts);
  }
  std::int64_t rows_in_use() const {
    return static_cast<std::int64_t>(row_offsets.at(GetParam().experts));
  }
  static Shape token_shape() { return {GetParam().tokens, GetParam().hidden}; }
  static Shape row_shape() { return {max_rows(), GetParam().hidden}; }
  Guarded gates() const { return random_normal(DType::f32, {GetParam().tokens, GetParam().k}, 21); }

  // One rounding to the dtype, and an fp32 sum of at most k + 1 terms of the size of the result's
  // root mean square or below.
  double bound() const { return unit_roundoff(GetParam().dtype) + 16 * unit_roundoff(DType::f32); }

  Guarded experts, row_offsets, source, slot;
  std::unique_ptr<Stream> stream;
};

TEST_P(Permute, PlanSortsByExpertThenTokenInPaddedGroups) {
  const Case& c = GetParam();
  std::vector<double> offsets = {0}, sources, slots(static_cast<std::size_t>(slot.size()), -1);
  for (std::int64_t e = 0; e < c.experts; ++e) {
    for (std::int64_t i = 0; i < c.tokens * c.slots(); ++i) {
      if (experts.at(i) != static_cast<double>(e)) continue;
      slots[static_cast<std::size_t>(i)] = static_cast<double>(sources.size());
      sources.push_back(static_cast<double>(i / c.slots()));
    }
    while (sources.size() % static_cast<std::size_t>(c.multiple) != 0) sources.push_back(-1);
    offsets.push_back(static_cast<double>(sources.size()));
  }
  sources.resize(static_cast<std::size_t>(max_rows()), -1);
  EXPECT_EQ(row_offsets.values(), offsets);
  EXPECT_EQ(source.values(), sources);
  EXPECT_EQ(slot.values(), slots);
}

TEST_P(Permute, DispatchCopiesRowsAndZeroesPadding) {
  Guarded x = random_normal(GetParam().dtype, token_shape(), 1);
  Guarded rows(GetParam().dtype, row_shape());
  const Guarded untouched = rows;
  run(*stream, DispatchForward{.x = x, .source = source, .row_offsets = row_offsets, .rows = rows});
  stream->synchronize();
  for (std::int64_t r = 0; r < max_rows(); ++r) {
    for (std::int64_t i = 0; i < GetParam().hidden; ++i) {
      const auto token = static_cast<std::int64_t>(source.at(r));
      const std::int64_t at = r * GetParam().hidden + i;
      if (r >= rows_in_use()) {
        ASSERT_EQ(rows.at(at), untouched.at(at)) << "row " << r << " past the last group";
      } else {
        ASSERT_EQ(rows.at(at), token < 0 ? 0 : x.at(token * GetParam().hidden + i)) << "row " << r;
      }
    }
  }
}

TEST_P(Permute, DispatchBackwardSumsChoices) {
  const Case& c = GetParam();
  Guarded d_rows = random_normal(c.dtype, row_shape(), 2);
  Guarded d_extra = random_normal(c.dtype, token_shape(), 3), d_x(c.dtype, token_shape());
  for (const bool with_extra : {false, true}) {
    const DispatchBackward op{.d_rows = d_rows,
                              .slot = slot,
                              .d_extra = with_extra ? d_extra.tensor() : Tensor(),
                              .d_x = d_x};
    run(*stream, op);
    stream->synchronize();
    std::vector<double> expected;
    for (std::int64_t i = 0; i < c.tokens * c.hidden; ++i) {
      expected.push_back(with_extra ? d_extra.at(i) : 0);
      for (std::int64_t j = 0; j < c.slots(); ++j) {
        const auto row = static_cast<std::int64_t>(slot.at(i / c.hidden * c.slots() + j));
        if (row >= 0) expected.back() += d_rows.at(row * c.hidden + i % c.hidden);
      }
    }
    expect_close(d_x, expected, bound(), "d_x");
    const Guarded first = d_x;
    run(*stream, op);
    stream->synchronize();
    EXPECT_TRUE(first == d_x) << "two runs differ";
  }
}

TEST_P(Permute, CombineWeighsByGates) {
  const Case& c = GetParam();
  Guarded rows = random_normal(c.dtype, row_shape(), 4), y(c.dtype, token_shape());
  Guarded weights = gates();
  const CombineForward op{.rows = rows, .slot = slot, .gates = weights, .y = y};
  run(*stream, op);
  stream->synchronize();
  std::vector<double> expected;
  for (std::int64_t i = 0; i < c.tokens * c.hidden; ++i) {
    expected.push_back(0);
    for (std::int64_t j = i / c.hidden * c.slots(); j < (i / c.hidden + 1) * c.slots(); ++j) {
      const auto row = static_cast<std::int64_t>(slot.at(j));
      if (row >= 0)
        expected.back() += weights.at(j / c.parts) * rows.at(row * c.hidden + i % c.hidden);
    }
  }
  expect_close(y, expected, bound(), "y");
  const Guarded first = y;
  run(*stream, op);
  stream->synchronize();
  EXPECT_TRUE(first == y) << "two runs differ";
}

TEST_P(Permute, CombineBackwardSpreadsTheGradient) {
  const Case& c = GetParam();
  Guarded rows = random_normal(c.dtype, row_shape(), 5),
          d_y = random_normal(c.dtype, token_shape(), 6);
  Guarded d_rows(c.dtype, row_shape()), weights = gates(), d_gates(DType::f32, weights.shape());
  const Guarded untouched = d_rows;
  CombineBackward op{.rows = rows,
                     .source = source,
                     .slot = slot,
                     .gates = weights,
                     .row_offsets = row_offsets,
                     .d_y = d_y,
                     .d_rows = d_rows,
                     .d_gates = d_gates};
  run(*stream, op);
  stream->synchronize();
  std::vector<double> expected_rows(static_cast<std::size_t>(rows.size())), expected_gates;
  for (std::int64_t r = rows_in_use(); r < max_rows(); ++r) {
    for (std::int64_t i = r * c.hidden; i < (r + 1) * c.hidden; ++i) {
      expected_rows[static_cast<std::size_t>(i)] = untouched.at(i);
    }
  }
  for (std::int64_t j = 0; j < c.tokens * c.slots(); ++j) {
    if (j % c.parts == 0) expected_gates.push_back(0);
    const auto row = static_cast<std::int64_t>(slot.at(j));
    for (std::int64_t i = 0; i < c.hidden && row >= 0; ++i) {
      const double gradient = d_y.at(j / c.slots() * c.hidden + i);
      expected_rows[static_cast<std::size_t>(row * c.hidden + i)] =
          weights.at(j / c.parts) * gradient;
      expected_gates.back() += gradient * rows.at(row * c.hidden + i);
    }
  }
  expect_close(d_rows, expected_rows, bound(), "d_rows");
  // An fp32 dot product of `hidden` terms of size one, for each part.
  const double terms = std::sqrt(static_cast<double>(c.hidden * c.parts));
  expect_close(d_gates, expected_gates, 8 * terms * unit_roundoff(DType::f32), "d_gates", terms);

  const Guarded first = d_rows, first_gates = d_gates;
  if (c.multiple == 1) {  // without padding, the plan is not needed
    op.source = op.row_offsets = ConstTensor();
    run(*stream, op);
    stream->synchronize();
    EXPECT_TRUE(first == d_rows) << "two runs differ";
  }
  op.d_rows = rows.tensor();  // the gradient may take the place of the rows
  run(*stream, op);
  stream->synchronize();
  EXPECT_TRUE(first_gates == d_gates) << "two runs differ";
  for (std::int64_t i = 0; i < rows_in_use() * c.hidden; ++i) ASSERT_EQ(rows.at(i), first.at(i));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Permute,
    ::testing::Values(Case{DType::f32, 1, 1, 1, 1, Routing::random},
                      Case{DType::f32, 0, 2, 4, 8, Routing::random},
                      Case{DType::f32, 67, 2, 8, 17, Routing::random},
                      Case{DType::f32, 129, 2, 8, 64, Routing::some_dropped},
                      Case{DType::f32, 32, 1, 8, 33, Routing::one_expert},
                      Case{DType::f32, 33, 1, 64, 7, Routing::one_expert},
                      Case{DType::f32, 5, 2, 4, 16, Routing::none},
                      Case{DType::bf16, 67, 2, 8, 17, Routing::random},
                      Case{DType::bf16, 31, 8, 65, 127, Routing::some_dropped},
                      Case{DType::bf16, 40, 2, 8, 512, Routing::one_expert},
                      Case{DType::f32, 67, 2, 12, 17, Routing::random, 2},
                      Case{DType::f32, 0, 2, 4, 8, Routing::none, 2, 1},
                      Case{DType::f32, 45, 3, 8, 19, Routing::some_dropped, 1, 1},
                      Case{DType::bf16, 53, 2, 32, 65, Routing::some_dropped, 4, 1},
                      Case{DType::f32, 9, 8, 97, 16, Routing::random, 4, 1}));

TEST(PermuteErrors, NameTheExpertAndTheRowsNeeded) {
  Guarded experts = integers({2, 1}, std::vector<int>{0, 3});
  Guarded row_offsets(DType::i32, {4}), source(DType::i32, {64}), slot(DType::i32, {2, 1});
  const auto stream = cpu_device().make_stream();
  const auto message = [&] {
    try {
      run(*stream,
          PermutePlan{
              .experts = experts, .row_offsets = row_offsets, .source = source, .slot = slot});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(message(), "PermutePlan: experts[1] is 3, outside [-1, 3)");
  experts.set(1, 2);
  EXPECT_EQ(message(), "accepted");
  source = Guarded(DType::i32, {63});
  EXPECT_EQ(
      message(),
      "PermutePlan: experts 0 ... 2 of 3 need 64 rows, source has 63; max_expert_rows gives a "
      "number that always suffices");
}

TEST(PermuteDeterminism, DoesNotDependOnTheNumberOfThreads) {
  const Case c{DType::f32, 300, 2, 8, 65, Routing::some_dropped};
  Guarded experts = route(c), rows = random_normal(DType::f32, {max_expert_rows(300, 2, 8), 65}, 1);
  Guarded row_offsets(DType::i32, {9}), source(DType::i32, {rows.shape()[0]});
  Guarded slot(DType::i32, {300, 2}), gates = random_normal(DType::f32, {300, 2}, 2);
  Guarded serial(DType::f32, {300, 65}), threaded = serial;
  const auto stream = cpu_device().make_stream();
  run(*stream,
      PermutePlan{.experts = experts, .row_offsets = row_offsets, .source = source, .slot = slot});
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  run(*stream, CombineForward{.rows = rows, .slot = slot, .gates = gates, .y = serial});
  omp_set_num_threads(5);
  run(*stream, CombineForward{.rows = rows, .slot = slot, .gates = gates, .y = threaded});
  omp_set_num_threads(before);
  stream->synchronize();
  EXPECT_TRUE(serial == threaded);
}

}  // namespace
}  // namespace orchard::testing
