// Batches of matrix products against an fp64 reference, with every library and device that can compute them,
// and with each of the GPU's kernels. gemm_epilogue_test has their epilogues.
#include "kernels/gemm/gemm_gpu.h"
#include "tests/kernels/gemm_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using simt::Tile;
using simt::WideTile;

class BatchedGemms : public LibraryTest {
 protected:
  void check(const Size& size, const Form& form, Values values = Values::normal) {
    const auto& [library, in, out] = GetParam();
    const auto stream = device_with(library).make_stream();
    check_gemm(*stream, in, out, size, form, values);
  }
};

// Matrices that begin on 16 bytes and those that do not, one tile and several, a batch of one.
TEST_P(BatchedGemms, EveryFormMatchesReferenceAtAwkwardSizes) {
  for (const Size& size : {Size{1, 1, 1, 3}, Size{7, 17, 31, 5}, Size{65, 63, 65, 3},
                           Size{16, 24, 40, 5}, Size{67, 72, 40, 1}, Size{130, 1, 16, 3}}) {
    for (const Form& form : every_form()) check(size, form);
  }
}

TEST_P(BatchedGemms, SumsOfIntegersAreExact) {
  for (const Form& form : transposes()) check({72, 136, 104, 5}, form, Values::integers);
}

// A k that a single product would be cut in: slices of the GPU's, pieces of the CPU's.
TEST_P(BatchedGemms, LongSumsAddUp) {
  for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
    check({33, 40, 2100, 3}, {Transpose::yes, Transpose::no, accumulate, true});
  }
}

TEST_P(BatchedGemms, EmptyBatchesAndProducts) {
  for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
    check({3, 5, 7, 0}, {Transpose::no, Transpose::yes, accumulate});
    check({0, 5, 7, 3}, {Transpose::no, Transpose::no, accumulate});
    check({3, 70, 0, 3}, {Transpose::yes, Transpose::no, accumulate, true});
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, BatchedGemms,
                         ::testing::ValuesIn(with_dtypes({"auto", "sgemm", "openblas"})),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Gpu, BatchedGemms, ::testing::ValuesIn(gpu_cases()), name_of_case);

// The kernels that shape would choose for larger batches: several tiles of each product, and for sm_90a
// several of them for each of four persistent blocks.
TEST(GemmEmulated, BatchesWithEveryKernel) {
  const auto device = make_policy_device({.order = simt::ThreadOrder::random,
                                          .seed = 7,
                                          .completion = simt::AsyncCompletion::random,
                                          .compute_capability = 90,
                                          .multiprocessors = 4});
  const auto stream = device->make_stream();
  const auto sm80 = [](Tile tile) -> GemmRunner {
    return [tile](Stream& s, const Gemm& op) { simt::run_bf16(s, op, tile); };
  };
  const auto sm90 = [](WideTile tile) -> GemmRunner {
    return [tile](Stream& s, const Gemm& op) { simt::run_sm90(s, op, tile); };
  };
  for (const GemmRunner& kernel :
       {sm80(Tile::side_64), sm80(Tile::side_128), sm90(WideTile::n_128), sm90(WideTile::n_256)}) {
    for (Form form : transposes()) {
      check_gemm(*stream, DType::bf16, DType::bf16, {136, 264, 72, 3}, form, Values::integers,
                 kernel);
      form.accumulate = Accumulate::add;
      form.bias = true;
      check_gemm(*stream, DType::bf16, DType::f32, {136, 136, 72, 3}, form, Values::integers,
                 kernel);
    }
  }
}

// A batch is not cut, whatever its k.
TEST(GemmEmulated, SlicesAreForASingleProduct) {
  const auto device = make_policy_device();
  const auto stream = device->make_stream();
  for (const std::int64_t batch : {1, 3}) {
    check_gemm(*stream, DType::bf16, DType::f32, {40, 72, 400, batch}, {}, Values::integers,
               [](Stream& s, const Gemm& op) { simt::run_bf16(s, op, Tile::side_64, 3); });
  }
}

TEST(BatchedGemmErrors, NameTheOperandAndItsShape) {
  const auto stream = cpu_device().make_stream();
  Guarded a = zeros(DType::f32, {3, 2, 4}), b = zeros(DType::f32, {3, 4, 5}),
          c = zeros(DType::f32, {3, 2, 5}), matrix = zeros(DType::f32, {4, 5}),
          of_five = zeros(DType::f32, {5, 4, 5}), bias = zeros(DType::f32, {3, 5});
  const auto refusal = [&](const Gemm& op) { return message_of([&] { run(*stream, op); }); };
  EXPECT_EQ(refusal({.a = a, .b = b, .c = c}), "");
  EXPECT_EQ(refusal({.a = a, .b = matrix, .c = c}),
            "Gemm: a, b and c are matrices, or batches of matrices");
  EXPECT_EQ(refusal({.a = matrix, .b = b, .c = c}),
            "Gemm: a, b and c are matrices, or batches of matrices");
  EXPECT_EQ(refusal({.a = a, .b = of_five, .c = c}),
            "Gemm: b has shape [5, 4, 5], expected [3, 4, 5]");
  EXPECT_EQ(refusal({.a = of_five, .b = b, .c = c}),
            "Gemm: a has shape [5, 4, 5], expected [3, 2, 5]");
  EXPECT_EQ(refusal({.a = a, .b = b, .c = c, .transpose_b = Transpose::yes}),
            "Gemm: b has shape [3, 4, 5], expected [3, 5, 4]");
  EXPECT_EQ(refusal({.a = a, .b = b, .c = c, .bias = bias}),
            "Gemm: bias has shape [3, 5], expected [5]");
}

}  // namespace
}  // namespace orchard::testing
