// Gemm against an fp64 reference, with every library that can compute it.
#include "tests/kernels/gemm_test.h"

#include <omp.h>

#include "kernels/gemm/peak.h"

namespace orchard::testing {
namespace {

struct Size {
  std::int64_t m, n, k;
};

std::vector<double> reference(const Gemm& op, const Guarded& a, const Guarded& b, const Guarded& c,
                              const Guarded& bias, Size size) {
  const auto [m, n, k] = size;
  const std::vector<double> a_values = a.values(), b_values = b.values();
  std::vector<double> out(static_cast<std::size_t>(m * n));
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = op.bias ? bias.at(j) : 0;
      if (op.accumulate == Accumulate::add) sum += c.at(i * n + j);
      for (std::int64_t l = 0; l < k; ++l) {
        sum += a_values[static_cast<std::size_t>(op.transpose_a == Transpose::yes ? l * m + i
                                                                                  : i * k + l)] *
               b_values[static_cast<std::size_t>(op.transpose_b == Transpose::yes ? j * k + l
                                                                                  : l * n + j)];
      }
      out[static_cast<std::size_t>(i * n + j)] = sum;
    }
  }
  return out;
}

class GemmLibraries : public ::testing::TestWithParam<LibraryCase> {
 protected:
  void SetUp() override {
    if (GetParam().library != "openblas") return;
    try {
      device_with("openblas");
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  // One product in one form, run twice.
  void check(Size size, Transpose transpose_a, Transpose transpose_b, Accumulate accumulate,
             bool with_bias) {
    const auto [library, in, out] = GetParam();
    const auto [m, n, k] = size;
    const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
    Guarded a = random_normal(in, ta ? Shape{k, m} : Shape{m, k}, 1);
    Guarded b = random_normal(in, tb ? Shape{n, k} : Shape{k, n}, 2);
    Guarded bias = random_normal(in, {n}, 3), c = random_normal(out, {m, n}, 4);
    if (accumulate == Accumulate::overwrite) fill_nan(c);  // must not be read
    const Guarded before = c;
    Gemm op{.a = a,
            .b = b,
            .c = c,
            .transpose_a = transpose_a,
            .transpose_b = transpose_b,
            .accumulate = accumulate};
    if (with_bias) op.bias = bias.tensor();
    const auto stream = device_with(library).make_stream();
    run(*stream, op);
    stream->synchronize();
    SCOPED_TRACE(fmt::format("m {} n {} k {} transpose {} {} add {} bias {}", m, n, k, ta, tb,
                             accumulate == Accumulate::add, with_bias));
    expect_close(c, reference(op, a, b, before, bias, size), gemm_bound(k, out), "c");

    Guarded again = before;
    op.c = again.tensor();
    run(*stream, op);
    stream->synchronize();
    EXPECT_TRUE(again == c) << "two runs differ";
  }
};

TEST_P(GemmLibraries, EveryFormMatchesReferenceAtAwkwardSizes) {
  for (const Size size : {Size{1, 1, 1}, Size{2, 3, 5}, Size{7, 17, 31}, Size{31, 15, 33},
                          Size{64, 64, 64}, Size{65, 63, 65}, Size{127, 129, 97}, Size{1, 130, 64},
                          Size{130, 1, 16}, Size{257, 100, 1}}) {
    for (const Transpose ta : {Transpose::no, Transpose::yes}) {
      for (const Transpose tb : {Transpose::no, Transpose::yes}) {
        for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
          for (const bool bias : {false, true}) check(size, ta, tb, accumulate, bias);
        }
      }
    }
  }
}

TEST_P(GemmLibraries, LongWeightGradientsAddEveryPiece) {
  check({33, 40, 4131}, Transpose::yes, Transpose::no, Accumulate::add, false);
  check({40, 33, 4131}, Transpose::yes, Transpose::no, Accumulate::overwrite, true);
  check({33, 40, 4131}, Transpose::yes, Transpose::yes, Accumulate::add, false);
  check({70, 600, 1000}, Transpose::yes, Transpose::no, Accumulate::add, false);
}

TEST_P(GemmLibraries, EmptyProductsYieldWhatTheSumStartsFrom) {
  for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
    check({3, 300, 0}, Transpose::no, Transpose::no, accumulate, false);
    check({3, 5, 0}, Transpose::yes, Transpose::no, accumulate, true);
    check({0, 5, 7}, Transpose::no, Transpose::yes, accumulate, false);
    check({5, 0, 7}, Transpose::yes, Transpose::no, accumulate, false);
  }
}

TEST_P(GemmLibraries, ResultsDoNotDependOnTheNumberOfThreads) {
  const auto [library, in, out] = GetParam();
  const int before = omp_get_max_threads();
  for (const auto& [ta, m, n, k] :
       {std::tuple{Transpose::no, 300, 640, 200}, std::tuple{Transpose::yes, 200, 100, 1500},
        std::tuple{Transpose::no, 40, 600, 300}}) {
    Guarded a = random_normal(in, ta == Transpose::yes ? Shape{k, m} : Shape{m, k}, 1);
    Guarded b = random_normal(in, {k, n}, 2), one = zeros(out, {m, n}), many = zeros(out, {m, n});
    const auto stream = device_with(library).make_stream();
    omp_set_num_threads(1);
    run(*stream, Gemm{.a = a, .b = b, .c = one, .transpose_a = ta});
    for (const int threads : {2, 3}) {
      omp_set_num_threads(threads);
      run(*stream, Gemm{.a = a, .b = b, .c = many, .transpose_a = ta});
      EXPECT_TRUE(one == many) << threads << " threads, m " << m << " n " << n << " k " << k;
    }
    omp_set_num_threads(before);
  }
}

TEST_P(GemmLibraries, WarmRunsBuildNothing) {
  const auto [library, in, out] = GetParam();
  Device& device = device_with(library);
  const auto stream = device.make_stream();
  Guarded a = random_normal(in, {201, 96}, 1), b = random_normal(in, {80, 96}, 2);
  const auto rows = [&](std::int64_t count) {
    Guarded c = zeros(out, {count, 80});
    run(*stream,
        Gemm{.a = a.tensor().slice(0, count), .b = b, .c = c, .transpose_b = Transpose::yes});
  };
  rows(201);
  const DeviceStatistics warm = device.statistics();
  for (const int count : {1, 63, 64, 65, 200, 201}) rows(count);
  EXPECT_EQ(device.statistics().primitive_creations, warm.primitive_creations);
  EXPECT_EQ(device.statistics().workspace_growths, warm.workspace_growths);
}

INSTANTIATE_TEST_SUITE_P(All, GemmLibraries,
                         ::testing::Values(LibraryCase{"auto", DType::f32, DType::f32},
                                           LibraryCase{"auto", DType::bf16, DType::bf16},
                                           LibraryCase{"auto", DType::bf16, DType::f32},
                                           LibraryCase{"sgemm", DType::f32, DType::f32},
                                           LibraryCase{"sgemm", DType::bf16, DType::bf16},
                                           LibraryCase{"sgemm", DType::bf16, DType::f32},
                                           LibraryCase{"openblas", DType::f32, DType::f32},
                                           LibraryCase{"openblas", DType::bf16, DType::bf16}),
                         name_of_case);

TEST(GemmErrors, NameTheOperandAndItsShape) {
  Guarded a = zeros(DType::f32, {2, 4}), b = zeros(DType::f32, {3, 5}),
          c = zeros(DType::f32, {2, 5});
  const auto stream = cpu_device().make_stream();
  try {
    run(*stream, Gemm{.a = a, .b = b, .c = c});
    FAIL() << "factors that do not fit were accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "Gemm: b has shape [3, 5], expected [4, 5]");
  }
}

TEST(GemmTable, NamesTheLibraryThatWasForced) {
  EXPECT_EQ(gemm_table(device_with("sgemm")),
            "f32: oneDNN sgemm\nbf16: oneDNN sgemm on values widened to f32\n");
}

TEST(GemmPeak, IsTheRateOfAnActualProduct) {
  const auto stream = cpu_device().make_stream();
  const double peak = measure_gemm_peak(*stream, DType::f32);
  EXPECT_GT(peak, 1e8);
  EXPECT_LT(peak, 1e16);
}

TEST(GemmErrors, AnUnknownLibraryIsRefused) {
  EXPECT_THROW(device_with("mkl"), Error);
}

}  // namespace
}  // namespace orchard::testing
