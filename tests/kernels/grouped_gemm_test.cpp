// The experts' products against an fp64 reference: ragged groups, empty ones, and rows after the
// last group, which hold NaN and must be neither read nor written.
#include <omp.h>

#include "tests/kernels/gemm_test.h"

namespace orchard::testing {
namespace {

constexpr std::int64_t spare_rows = 5;

struct Problem {
  std::vector<int> offsets;
  std::int64_t k, n;

  std::int64_t groups() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  std::int64_t rows() const { return offsets.back() + spare_rows; }
};

class GroupedGemms : public LibraryTest {
 protected:
  // Row counts with one, two and several tiles, a group without rows first, amid and last.
  std::vector<Problem> problems() const {
    return {{{0, 0, 32, 128, 128, 352, 384, 384}, 48, 80},
            {{0, 32}, 17, 5},
            {{0, 0, 0}, 24, 40},
            {{0, 1088, 1120}, 33, 65}};
  }

  // Of `terms` each, within their bound, or, with integers, exactly, rounded once.
  static void expect_sums(Values values, const Guarded& sums, const std::vector<double>& expected,
                          std::int64_t terms, const char* what) {
    if (values == Values::normal) {
      expect_close(sums, expected, gemm_bound(terms, sums.dtype()), what);
      return;
    }
    EXPECT_TRUE(sums == rounded_to(sums.dtype(), sums.shape(), expected)) << what << " of integers";
  }

  void check_weight_gradient(const Problem& p, Values values = Values::normal) const;

  static void spoil_spare_rows(const Problem& p, Guarded& rows) {
    const std::int64_t cols = rows.shape()[1];
    for (std::int64_t i = p.offsets.back() * cols; i < p.rows() * cols; ++i)
      rows.set(i, std::numeric_limits<double>::quiet_NaN());
  }

  void check_forward(const Problem& p, Transpose transpose_b, Accumulate accumulate,
                     Values values = Values::normal) const {
    const auto [library, in, out] = GetParam();
    const auto stream = device_with(library).make_stream();
    const bool tb = transpose_b == Transpose::yes, add = accumulate == Accumulate::add;
    Guarded a = random_values(values, in, {p.rows(), p.k}, 1);
    Guarded b = random_values(values, in,
                              tb ? Shape{p.groups(), p.n, p.k} : Shape{p.groups(), p.k, p.n}, 2);
    Guarded c = random_values(values, out, {p.rows(), p.n}, 3);
    Guarded offsets = integers({p.groups() + 1}, p.offsets);
    if (!add) fill_nan(c);  // must not be read
    spoil_spare_rows(p, a);
    spoil_spare_rows(p, c);
    const Guarded before = c;
    Guarded again = c;
    {
      OnDevice a_d(*stream, a), b_d(*stream, b), offsets_d(*stream, offsets);
      OnDevice c_d(*stream, c), again_d(*stream, again);
      GroupedGemm op{.a = a_d,
                     .b = b_d,
                     .c = c_d,
                     .row_offsets = offsets_d,
                     .transpose_b = transpose_b,
                     .accumulate = accumulate};
      run(*stream, op);
      op.c = again_d.tensor();
      run(*stream, op);
      c_d.download();
      again_d.download();
      stream->synchronize();
    }

    Guarded used(out, {p.offsets.back(), p.n});
    std::vector<double> expected;
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      for (std::int64_t i = p.offsets[g]; i < p.offsets[g + 1]; ++i) {
        for (std::int64_t j = 0; j < p.n; ++j) {
          double sum = add ? before.at(i * p.n + j) : 0;
          for (std::int64_t l = 0; l < p.k; ++l)
            sum += a.at(i * p.k + l) * b.at(tb ? (g * p.n + j) * p.k + l : (g * p.k + l) * p.n + j);
          expected.push_back(sum);
          used.set(i * p.n + j, c.at(i * p.n + j));
        }
      }
    }
    expect_sums(values, used, expected, p.k, add ? "c, accumulated" : "c");
    for (std::int64_t i = p.offsets.back() * p.n; i < p.rows() * p.n; ++i)
      ASSERT_TRUE(std::isnan(c.at(i))) << "a row after the last group was written";
    EXPECT_TRUE(again == c) << "two runs differ";
  }
};
using GroupedGemmLibraries = LibraryTest;

TEST_P(GroupedGemms, ForwardMatchesReferenceAndLeavesSpareRows) {
  for (const Problem& p : problems()) {
    for (const Transpose transpose_b : {Transpose::no, Transpose::yes}) {
      for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add})
        check_forward(p, transpose_b, accumulate);
    }
  }
}

void GroupedGemms::check_weight_gradient(const Problem& p, Values values) const {
  const auto [library, in, out] = GetParam();
  const auto stream = device_with(library).make_stream();
  const std::int64_t m = p.k, n = p.n;
  Guarded a = random_values(values, in, {p.rows(), m}, 1);
  Guarded b = random_values(values, in, {p.rows(), n}, 2);
  Guarded d_b = random_values(values, DType::f32, {p.groups(), m, n}, 3);
  Guarded offsets = integers({p.groups() + 1}, p.offsets);
  const Guarded before = d_b;
  spoil_spare_rows(p, a);
  spoil_spare_rows(p, b);
  Guarded again = d_b;
  {
    OnDevice a_d(*stream, a), b_d(*stream, b), offsets_d(*stream, offsets);
    OnDevice d_b_d(*stream, d_b), again_d(*stream, again);
    GroupedGemmWeightGradient op{.a = a_d, .b = b_d, .d_b = d_b_d, .row_offsets = offsets_d};
    run(*stream, op);
    op.d_b = again_d.tensor();
    run(*stream, op);
    d_b_d.download();
    again_d.download();
    stream->synchronize();
  }
  std::vector<double> expected = before.values();
  for (std::int64_t g = 0; g < p.groups(); ++g) {
    for (std::int64_t i = 0; i < m * n; ++i) {
      for (std::int64_t r = p.offsets[g]; r < p.offsets[g + 1]; ++r)
        expected[static_cast<std::size_t>(g * m * n + i)] +=
            a.at(r * m + i / n) * b.at(r * n + i % n);
      if (p.offsets[g] == p.offsets[g + 1]) {
        ASSERT_EQ(d_b.at(g * m * n + i), before.at(g * m * n + i)) << "an empty group changed";
      }
    }
  }
  // The largest group's sums are the longest.
  expect_sums(values, d_b, expected, p.offsets.back(), "d_b");
  EXPECT_TRUE(again == d_b) << "two runs differ";
}

TEST_P(GroupedGemms, WeightGradientMatchesReferenceAndKeepsEmptyGroups) {
  for (const Problem& p : problems()) check_weight_gradient(p);
}

TEST_P(GroupedGemms, SumsOfIntegersAreExact) {
  const Problem p{{0, 32, 32, 160, 192}, 72, 80};
  for (const Transpose transpose_b : {Transpose::no, Transpose::yes})
    check_forward(p, transpose_b, Accumulate::add, Values::integers);
  check_weight_gradient(p, Values::integers);
}

// More groups than a warp has lanes, most of them empty or small.
TEST_P(GroupedGemms, ManyGroups) {
  Problem p{{0}, 16, 24};
  for (int group = 0; group < 70; ++group) {
    p.offsets.push_back(p.offsets.back() + (group % 3 == 0 ? 32 * (group % 5) : 0));
  }
  check_forward(p, Transpose::yes, Accumulate::overwrite);
}

TEST_P(GroupedGemmLibraries, ResultsDoNotDependOnTheNumberOfThreads) {
  const auto [library, in, out] = GetParam();
  const int before = omp_get_max_threads();
  const auto stream = device_with(library).make_stream();
  // The second group's weight gradient is summed in several steps, which must keep their order.
  const Problem p{{0, 64, 2144, 2176}, 160, 200};
  Guarded a = random_normal(in, {p.rows(), p.k}, 1), b = random_normal(in, {3, p.k, p.n}, 2);
  Guarded rows = random_normal(in, {p.rows(), p.n}, 3), offsets = integers({4}, p.offsets);
  Guarded first_c(out, {p.rows(), p.n}), first_d = zeros(DType::f32, {3, p.k, p.n});
  for (const int threads : {1, 2, 3}) {
    omp_set_num_threads(threads);
    Guarded c(out, {p.rows(), p.n}), d_b = zeros(DType::f32, {3, p.k, p.n});
    run(*stream, GroupedGemm{.a = a, .b = b, .c = c, .row_offsets = offsets});
    run(*stream, GroupedGemmWeightGradient{.a = a, .b = rows, .d_b = d_b, .row_offsets = offsets});
    if (threads == 1) {
      first_c = c;
      first_d = d_b;
    }
    EXPECT_TRUE(c == first_c) << threads << " threads";
    EXPECT_TRUE(d_b == first_d) << threads << " threads";
  }
  omp_set_num_threads(before);
}

TEST_P(GroupedGemmLibraries, OtherRowCountsBuildNothing) {
  const auto [library, in, out] = GetParam();
  Device& device = device_with(library);
  const auto stream = device.make_stream();
  Guarded a = random_normal(in, {512, 72}, 1), b = random_normal(in, {2, 72, 136}, 2);
  Guarded rows = random_normal(in, {512, 136}, 3), d_b = zeros(DType::f32, {2, 72, 136});
  Guarded c(out, {512, 136});
  const auto step = [&](const std::vector<int>& counts) {
    Guarded offsets = integers({3}, counts);
    run(*stream, GroupedGemm{.a = a, .b = b, .c = c, .row_offsets = offsets});
    run(*stream, GroupedGemmWeightGradient{.a = a, .b = rows, .d_b = d_b, .row_offsets = offsets});
  };
  step({0, 32, 64});
  const DeviceStatistics warm = device.statistics();
  for (const auto& counts : {std::vector{0, 0, 512}, {0, 480, 512}, {0, 96, 352}, {0, 224, 256}})
    step(counts);
  EXPECT_EQ(device.statistics().primitive_creations, warm.primitive_creations);
  EXPECT_EQ(device.statistics().workspace_growths, warm.workspace_growths);
}

const auto libraries = ::testing::ValuesIn(with_dtypes({"auto", "sgemm"}));

INSTANTIATE_TEST_SUITE_P(Cpu, GroupedGemms, libraries, name_of_case);
INSTANTIATE_TEST_SUITE_P(Gpu, GroupedGemms, ::testing::ValuesIn(gpu_cases()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Cpu, GroupedGemmLibraries, libraries, name_of_case);

TEST(GroupedGemmErrors, OffsetsThatAreNotMultiplesOf32AreRefused) {
  Guarded a = zeros(DType::f32, {64, 4}), b = zeros(DType::f32, {1, 4, 4});
  Guarded c = zeros(DType::f32, {64, 4}), offsets = integers({2}, std::vector{0, 33});
  const auto stream = cpu_device().make_stream();
  EXPECT_THROW(run(*stream, GroupedGemm{.a = a, .b = b, .c = c, .row_offsets = offsets}), Error);
}

}  // namespace
}  // namespace orchard::testing
