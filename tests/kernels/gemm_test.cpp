// Gemm against an fp64 reference, with every library and device that can compute it.
#include "tests/kernels/gemm_test.h"

#include <omp.h>

#include "kernels/gemm/peak.h"

namespace orchard::testing {
namespace {

// Everything that can compute a product, and the CPU's libraries alone.
class Gemms : public LibraryTest {
 protected:
  void check(const Size& size, const Form& form, Values values = Values::normal) {
    const auto& [library, in, out] = GetParam();
    const auto stream = device_with(library).make_stream();
    check_gemm(*stream, in, out, size, form, values);
  }
};
using GemmLibraries = LibraryTest;

TEST_P(Gemms, EveryFormMatchesReferenceAtAwkwardSizes) {
  for (const Size size : {Size{1, 1, 1}, Size{2, 3, 5}, Size{7, 17, 31}, Size{31, 15, 33},
                          Size{64, 64, 64}, Size{65, 63, 65}, Size{127, 129, 97}, Size{1, 130, 64},
                          Size{130, 1, 16}, Size{257, 100, 1}, Size{67, 72, 40}}) {
    for (const Form& form : every_form()) check(size, form);
  }
}

TEST_P(Gemms, SumsOfIntegersAreExact) {
  for (const Form& form : transposes()) check({72, 80, 104}, form, Values::integers);
}

TEST_P(Gemms, LongWeightGradientsAddEveryPiece) {
  constexpr Transpose no = Transpose::no, yes = Transpose::yes;
  check({33, 40, 4131}, {yes, no, Accumulate::add});
  check({40, 33, 4131}, {yes, no, Accumulate::overwrite, true});
  check({33, 40, 4131}, {yes, yes, Accumulate::add});
  check({70, 600, 1000}, {yes, no, Accumulate::add});
}

TEST_P(Gemms, EmptyProductsYieldWhatTheSumStartsFrom) {
  constexpr Transpose no = Transpose::no, yes = Transpose::yes;
  for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
    check({3, 300, 0}, {no, no, accumulate});
    check({3, 5, 0}, {yes, no, accumulate, true});
    check({0, 5, 7}, {no, yes, accumulate});
    check({5, 0, 7}, {yes, no, accumulate});
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
  const std::string& library = GetParam().library;
  const DType in = GetParam().in, out = GetParam().out;
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

const auto libraries = ::testing::ValuesIn(with_dtypes({"auto", "sgemm", "openblas"}));

INSTANTIATE_TEST_SUITE_P(Cpu, Gemms, libraries, name_of_case);
INSTANTIATE_TEST_SUITE_P(Gpu, Gemms, ::testing::ValuesIn(gpu_cases()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Cpu, GemmLibraries, libraries, name_of_case);

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

// What is packed of b is rounded up to pieces of k, and here larger than products packed together may be.
TEST(GemmOnCpu, AWideProductOfAnOddDepthStaysInItsWorkspace) {
  const auto stream = device_with("auto").make_stream();
  check_gemm(*stream, DType::f32, DType::f32, {1, 300'000, 33}, {Transpose::yes, Transpose::no});
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
