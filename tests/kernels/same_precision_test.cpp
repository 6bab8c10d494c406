// Matrix products and attention, with every kernel that computes them: their errors are at most twice
// those of the same formula in the same precision (same_precision.h). Row by row operations are in
// same_precision_rows_test.
#include "tests/kernels/same_precision.h"

#include "tests/kernels/attention_test.h"
#include "tests/kernels/gemm_test.h"

namespace orchard::testing {
namespace {

constexpr Transpose no = Transpose::no, yes = Transpose::yes;

using Products = LibraryTest;

// Rows that begin on 16 bytes, as sm_90a's kernels need them, and others; sums that are short, long, and
// begun with what c holds.
TEST_P(Products, ErrAtMostTwiceAsMuchAsPlainSums) {
  const auto& [library, in, out] = GetParam();
  const auto stream = device_with(library).make_stream();
  for (const auto& [size, form] :
       {std::pair{Size{65, 63, 65}, Form{no, yes, Accumulate::overwrite, true}},
        std::pair{Size{136, 264, 200}, Form{no, no}}, std::pair{Size{72, 136, 4136}, Form{yes, no}},
        std::pair{Size{33, 40, 4131}, Form{yes, no, Accumulate::add}}}) {
    SCOPED_TRACE(text(form, size));
    GemmProblem problem(in, out, size, form, Values::normal);
    expect_at_most_twice_plain_error(problem.computed(*stream), problem.expected(), problem.plain(),
                                     fmt::format("k {}", size.k).c_str());
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Products,
                         ::testing::ValuesIn(with_dtypes({"auto", "sgemm", "openblas"})),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Gpu, Products, ::testing::ValuesIn(gpu_cases()), name_of_case);

// The experts' products, of ragged groups.
template <class Real>
struct GroupedFormula {
  std::vector<Real> c;    // [rows, n]
  std::vector<Real> d_b;  // [groups, k, n], of a^T · c's operand d_c

  GroupedFormula(const std::vector<int>& offsets, const Guarded& a, const Guarded& b,
                 const Guarded& d_c) {
    const std::int64_t k = a.shape()[1], n = d_c.shape()[1];
    c.resize(d_c.size());
    d_b.resize(b.size());
    const auto at = [](const Guarded& x, std::int64_t i) { return static_cast<Real>(x.at(i)); };
    for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
      for (std::int64_t i = offsets[g]; i < offsets[g + 1]; ++i) {
        for (std::int64_t l = 0; l < k; ++l) {
          for (std::int64_t j = 0; j < n; ++j) {
            const std::int64_t weight = (static_cast<std::int64_t>(g) * k + l) * n + j;
            c[i * n + j] += at(a, i * k + l) * at(b, weight);
            d_b[weight] += at(a, i * k + l) * at(d_c, i * n + j);
          }
        }
      }
    }
  }
};

using GroupedProducts = LibraryTest;

TEST_P(GroupedProducts, ErrAtMostTwiceAsMuchAsPlainSums) {
  const auto& [library, in, out] = GetParam();
  const auto stream = device_with(library).make_stream();
  const std::vector<int> offsets{0, 32, 32, 1088, 1120};
  for (const auto& [k, n] : {std::pair{33, 41}, std::pair{520, 40}}) {
    const Shape rows_of_c{offsets.back(), n}, weights{4, k, n};
    Guarded a = random_normal(in, {offsets.back(), k}, 1), b = random_normal(in, weights, 2);
    Guarded d_c = random_normal(in, rows_of_c, 3), row_offsets = integers({5}, offsets);
    Guarded c(out, rows_of_c), d_b = zeros(DType::f32, weights);
    OnDevice a_d(*stream, a), b_d(*stream, b), d_c_d(*stream, d_c), offsets_d(*stream, row_offsets);
    OnDevice c_out(*stream, c), d_b_d(*stream, d_b);
    run_and_download(*stream, GroupedGemm{.a = a_d, .b = b_d, .c = c_out, .row_offsets = offsets_d},
                     {&c_out});
    run_and_download(
        *stream,
        GroupedGemmWeightGradient{.a = a_d, .b = d_c_d, .d_b = d_b_d, .row_offsets = offsets_d},
        {&d_b_d});

    const GroupedFormula<double> exact(offsets, a, b, d_c);
    const GroupedFormula<float> plain(offsets, a, b, d_c);
    SCOPED_TRACE(fmt::format("k {} n {}", k, n));
    expect_twice(c, exact.c, plain.c, "c");
    expect_twice(d_b, exact.d_b, plain.d_b, "d_b");
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, GroupedProducts, ::testing::ValuesIn(with_dtypes({"auto", "sgemm"})),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Gpu, GroupedProducts, ::testing::ValuesIn(gpu_cases()), name_of_case);

struct AttentionOn {
  std::string device;
  AttentionCase problem;
};

void PrintTo(const AttentionOn& c, std::ostream* os) {
  *os << c.device << " ";
  PrintTo(c.problem, os);
}

class Attention : public ::testing::TestWithParam<AttentionOn> {
 protected:
  void SetUp() override {
    try {
      device_with(GetParam().device);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
};

TEST_P(Attention, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  AttentionProblem p(GetParam().problem);
  run_both(*device_with(GetParam().device).make_stream(), p);
  const AttentionResults<double> exact(p);
  const AttentionResults<float> plain(p);

  const auto expect = [&](const Guarded& actual, const std::vector<double>& wanted,
                          const std::vector<float>& plainly, std::vector<double> sizes,
                          const char* what) {
    for (std::size_t i = 0; i < sizes.size(); ++i)
      sizes[i] = std::max(sizes[i], std::abs(wanted[i]));
    expect_twice(actual, wanted, plainly, sizes, what);
  };
  expect(p.out, exact.out, plain.out, exact.out_terms, "out");
  // The scores' own size, of which it is a sum, where it is nearly zero.
  expect(p.log_sum_exp, exact.log_sum_exp, plain.log_sum_exp,
         std::vector<double>(exact.log_sum_exp.size(), std::max(1.0, p.c.logits)), "log_sum_exp");
  expect(p.d_q, exact.d_q, plain.d_q, exact.d_q_terms, "d_q");
  expect(p.d_k, exact.d_k, plain.d_k, exact.d_k_terms, "d_k");
  expect(p.d_v, exact.d_v, plain.d_v, exact.d_v_terms, "d_v");
}

// Several tiles with edges, long sums over keys and over queries, and peaked distributions.
std::vector<AttentionOn> attention_cases() {
  std::vector<const char*> devices{"auto", "simt", "simt90"};
#ifdef ORCHARD_HAS_CUDA
  devices.push_back("cuda");
#endif
  std::vector<AttentionOn> cases;
  for (const char* const device : devices) {
    for (const auto& [dtype, head_dim] :
         {std::pair{DType::f32, 80}, std::pair{DType::bf16, 64}, std::pair{DType::bf16, 80},
          std::pair{DType::bf16, 96}, std::pair{DType::bf16, 128}}) {
      const bool is_made_for_sm90 = dtype == DType::bf16 && head_dim % 64 == 0;
      if (device == std::string("simt90") && !is_made_for_sm90) continue;  // the kernel of sm_80
      for (const AttentionCase& c :
           {AttentionCase{dtype, 2, 1, head_dim, {300, 17}},
            AttentionCase{dtype, 2, 1, head_dim, {24}, {2050}},
            AttentionCase{dtype, 2, 1, head_dim, {2050}, {24}, Mask::full},
            AttentionCase{dtype, 2, 1, head_dim, {260}, {}, Mask::causal, 0, 30}}) {
        cases.push_back({device, c});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Shapes, Attention, ::testing::ValuesIn(attention_cases()),
                         [](const auto& test) {
                           return fmt::format("{}_{}", test.param.device, test.index);
                         });

}  // namespace
}  // namespace orchard::testing
