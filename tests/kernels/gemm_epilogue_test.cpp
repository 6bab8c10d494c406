// The epilogues of matrix products, by every library, device and kernel that computes them: the bits of
// the product followed by the pointwise operation, whose values their own tests hold; the function of
// the product against fp64; and what the kernels move.
#include <array>

#include "kernels/activation/activation.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm_gpu.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/gemm_test.h"

namespace orchard::testing {
namespace {

constexpr std::array kinds{EpilogueKind::residual, EpilogueKind::quick_gelu,
                           EpilogueKind::silu_gate};

const char* text(EpilogueKind kind) {
  constexpr std::array names{"none", "residual", "quick-gelu", "silu-gate"};
  return names[static_cast<std::size_t>(kind)];
}

bool reads_other(EpilogueKind kind) {
  return kind != EpilogueKind::quick_gelu;
}

bool writes_pre(EpilogueKind kind) {
  return kind != EpilogueKind::residual;
}

// The operation that an epilogue stands for, y of v; over the leading rows that count.
void run_alone(Stream& stream, EpilogueKind kind, ConstTensor v, ConstTensor other, Tensor y) {
  switch (kind) {
    case EpilogueKind::none:
      return;
    case EpilogueKind::residual:
      return run(stream, Add{.a = v, .b = other, .y = y});
    case EpilogueKind::quick_gelu:
      return run(stream, ActivationForward{.kind = Activation::quick_gelu, .x = v, .y = y});
    case EpilogueKind::silu_gate:
      return run(stream, SwiGluForward{.gate = v, .up = other, .y = y});
  }
}

double value(EpilogueKind kind, double v, double other) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  switch (kind) {
    case EpilogueKind::none:
      break;
    case EpilogueKind::residual:
      return v + other;
    case EpilogueKind::quick_gelu:
      return v * sigmoid(1.702 * v);
    case EpilogueKind::silu_gate:
      return v * sigmoid(v) * other;
  }
  return v;
}

// Of v: the rounding of the result, that of a bf16 sigmoid, and a dozen in fp32, one of which the
// exponential multiplies by |1.702 v| < 16.
double bound(DType dtype) {
  return 2 * unit_roundoff(dtype) + 32 * unit_roundoff(DType::f32);
}

void check_value(EpilogueKind kind, const Guarded& v, const Guarded& other, const Guarded& c,
                 std::int64_t count) {
  Guarded used(c.dtype(), {count});
  std::vector<double> expected;
  for (std::int64_t i = 0; i < count; ++i) {
    used.set(i, c.at(i));
    expected.push_back(value(kind, v.at(i), other.at(i)));
  }
  expect_close(used, expected, bound(c.dtype()), "c");
}

// Elements by which `other` and `pre` lie off alignment.
struct Shifts {
  int other = 0, pre = 0;
};

void check_epilogue(Stream& stream, DType dtype, EpilogueKind kind, const Size& size,
                    const Form& form, const GemmRunner& run_gemm = run_as_users_do,
                    const Shifts& shifts = {}) {
  SCOPED_TRACE(fmt::format("{}, {}", text(kind), text(form, size)));
  const std::int64_t m = size.m, n = size.n, k = size.k;
  const Shape shape = size.matrices(m, n), rows = {size.products() * m, n};
  Guarded a = random_normal(dtype, form.ta() ? size.matrices(k, m) : size.matrices(m, k), 1);
  Guarded b = random_normal(dtype, form.tb() ? size.matrices(n, k) : size.matrices(k, n), 2, 0.5);
  Guarded bias = random_normal(dtype, {n}, 3), other = random_normal(dtype, shape, 4);
  Guarded v(dtype, shape), alone(dtype, shape), pre(dtype, shape), c(dtype, shape);
  fill_nan(pre), fill_nan(c);  // must not be read
  Guarded without_pre = c;
  const Guarded other_before = other;
  {
    OnDevice a_d(stream, a), b_d(stream, b), bias_d(stream, bias);
    OnDevice other_d(stream, other, shifts.other), pre_d(stream, pre, shifts.pre);
    OnDevice v_d(stream, v), alone_d(stream, alone), c_d(stream, c), without_d(stream, without_pre);
    Gemm op{.a = a_d,
            .b = b_d,
            .c = v_d,
            .transpose_a = form.transpose_a,
            .transpose_b = form.transpose_b};
    if (form.bias) op.bias = bias_d.tensor();
    run_gemm(stream, op);
    if (rows.numel() > 0) {
      run_alone(stream, kind, v_d.tensor().reshape(rows), other_d.tensor().reshape(rows),
                alone_d.tensor().reshape(rows));
    }
    op.epilogue.kind = kind;
    if (reads_other(kind)) op.epilogue.other = other_d.tensor();
    op.c = without_d.tensor();
    run_gemm(stream, op);
    if (writes_pre(kind)) op.epilogue.pre = pre_d.tensor();
    op.c = c_d.tensor();
    run_gemm(stream, op);
    for (OnDevice* const result : {&v_d, &alone_d, &pre_d, &c_d, &without_d, &other_d}) {
      result->download();
    }
    stream.synchronize();
  }
  EXPECT_TRUE(c == alone) << "not the bits of the operations one after the other";
  EXPECT_TRUE(without_pre == c) << "c depends on whether pre is wanted";
  EXPECT_TRUE(!writes_pre(kind) || pre == v) << "pre is not the product";
  EXPECT_TRUE(other == other_before) << "other was written";
  check_value(kind, v, other, c, rows.numel());
}

std::vector<LibraryCase> one_dtype(std::initializer_list<const char*> libraries) {
  std::vector<LibraryCase> cases;
  for (const char* const library : libraries) {
    cases.push_back({library, DType::bf16, DType::bf16});
    // sm_90a computes in fp32 with the kernels of sm_80.
    if (library != std::string_view("simt90")) cases.push_back({library, DType::f32, DType::f32});
  }
  return cases;
}

std::vector<LibraryCase> gpus() {
#ifdef ORCHARD_HAS_CUDA
  return one_dtype({"simt", "simt90", "cuda"});
#else
  return one_dtype({"simt", "simt90"});
#endif
}

constexpr Transpose no = Transpose::no, yes = Transpose::yes;

using Epilogues = LibraryTest;

TEST_P(Epilogues, AreTheBitsOfTwoOperations) {
  const auto stream = device_with(GetParam().library).make_stream();
  for (const EpilogueKind kind : kinds) {
    for (const Size& size :
         {Size{1, 1, 1}, Size{7, 17, 31}, Size{63, 65, 64}, Size{64, 64, 40}, Size{127, 129, 33},
          Size{129, 136, 72}, Size{1, 8, 8}, Size{33, 72, 40, 3}, Size{7, 17, 31, 5}}) {
      for (const bool bias : {false, true}) {
        check_epilogue(*stream, GetParam().in, kind, size, {no, yes, Accumulate::overwrite, bias});
      }
    }
    check_epilogue(*stream, GetParam().in, kind, {5, 12, 0},
                   {no, yes, Accumulate::overwrite, true});
    check_epilogue(*stream, GetParam().in, kind, {0, 5, 7}, {});
    check_epilogue(*stream, GetParam().in, kind, {5, 0, 7}, {});
    check_epilogue(*stream, GetParam().in, kind, {33, 40, 48}, {yes, no});
  }
}

TEST_P(Epilogues, TakeOperandsOffAlignment) {
  const auto stream = device_with(GetParam().library).make_stream();
  for (const Shifts& shifts : {Shifts{1, 0}, Shifts{0, 1}, Shifts{2, 3}}) {
    check_epilogue(*stream, GetParam().in, EpilogueKind::silu_gate, {40, 72, 64}, {no, yes},
                   run_as_users_do, shifts);
  }
}

// How a grouped product is run: as users do, or with a kernel of the test's choice.
using GroupedRunner = std::function<void(Stream&, const GroupedGemm&)>;

struct Groups {
  std::vector<int> offsets;
  std::int64_t n, k;
};

// Spare rows, which hold NaN, stay as they are.
void check_groups(Stream& stream, DType dtype, EpilogueKind kind, const Groups& groups,
                  Transpose transpose_b, const GroupedRunner& run_gemm) {
  const auto& [offsets, n, k] = groups;
  const std::int64_t count = static_cast<std::int64_t>(offsets.size()) - 1;
  const std::int64_t used = offsets.back(), rows = used + 5;
  SCOPED_TRACE(fmt::format("{}, {} groups, n {}", text(kind), count, n));
  const Shape shape = {rows, n};
  Guarded a = random_normal(dtype, {rows, k}, 1);
  Guarded b = random_normal(dtype, transpose_b == yes ? Shape{count, n, k} : Shape{count, k, n}, 2);
  Guarded other = random_normal(dtype, shape, 3), row_offsets = integers({count + 1}, offsets);
  Guarded v(dtype, shape), alone(dtype, shape), pre(dtype, shape), c(dtype, shape);
  for (Guarded* const result : {&v, &alone, &pre, &c}) fill_nan(*result);
  for (std::int64_t i = used * k; i < rows * k; ++i) a.set(i, std::nan(""));
  {
    OnDevice a_d(stream, a), b_d(stream, b), other_d(stream, other), offsets_d(stream, row_offsets);
    OnDevice v_d(stream, v), alone_d(stream, alone), pre_d(stream, pre), c_d(stream, c);
    GroupedGemm op{
        .a = a_d, .b = b_d, .c = v_d, .row_offsets = offsets_d, .transpose_b = transpose_b};
    run_gemm(stream, op);
    if (used > 0) {
      run_alone(stream, kind, v_d.tensor().slice(0, used), other_d.tensor().slice(0, used),
                alone_d.tensor().slice(0, used));
    }
    op.c = c_d.tensor();
    op.epilogue.kind = kind;
    if (reads_other(kind)) op.epilogue.other = other_d.tensor();
    if (writes_pre(kind)) op.epilogue.pre = pre_d.tensor();
    run_gemm(stream, op);
    for (OnDevice* const result : {&v_d, &alone_d, &pre_d, &c_d}) result->download();
    stream.synchronize();
  }
  EXPECT_TRUE(c == alone) << "not the bits of the operations one after the other";
  EXPECT_TRUE(!writes_pre(kind) || pre == v) << "pre is not the product";
  check_value(kind, v, other, c, used * n);
}

// Groups without rows, with part of a tile and with several.
std::vector<Groups> ragged_groups() {
  return {{{0, 0, 32, 128, 128, 352, 384, 384}, 80, 48},
          {{0, 32}, 5, 17},
          {{0, 0, 0}, 40, 24},
          {{0, 160, 192}, 131, 40}};
}

TEST_P(Epilogues, OfGroupsAreTheBitsOfTwoOperations) {
  const auto stream = device_with(GetParam().library).make_stream();
  const auto product = [](Stream& s, const GroupedGemm& op) { run(s, op); };
  for (const Groups& groups : ragged_groups()) {
    for (const EpilogueKind kind : kinds) {
      for (const Transpose transpose_b : {no, yes}) {
        check_groups(*stream, GetParam().in, kind, groups, transpose_b, product);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, Epilogues,
                         ::testing::ValuesIn(one_dtype({"auto", "sgemm", "openblas"})),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Gpu, Epilogues, ::testing::ValuesIn(gpus()), name_of_case);

// Several tiles of every kernel, edges on all sides, in other orders of threads; k whole and in slices.
TEST(EpiloguesEmulated, OfEveryKernelAndItsSlices) {
  using simt::AsyncCompletion;
  using simt::ThreadOrder;
  for (const auto& [completion, order, slices] :
       {std::tuple{AsyncCompletion::lazy, ThreadOrder::random, 1},
        std::tuple{AsyncCompletion::eager, ThreadOrder::reverse, 3}}) {
    const auto device = make_policy_device({.order = order,
                                            .seed = 7,
                                            .completion = completion,
                                            .compute_capability = 90,
                                            .multiprocessors = 2});
    const auto stream = device->make_stream();
    for (const EpilogueKind kind : kinds) {
      for (const simt::Tile tile : {simt::Tile::side_64, simt::Tile::side_128}) {
        const auto product = [&, slices = slices](Stream& s, const Gemm& op) {
          simt::run_bf16(s, op, tile, slices);
        };
        check_epilogue(*stream, DType::bf16, kind, {136, 152, 200},
                       {no, yes, Accumulate::overwrite, true}, product);
        check_epilogue(*stream, DType::bf16, kind, {129, 127, 200}, {yes, no}, product);
      }
      for (const simt::WideTile tile : {simt::WideTile::n_128, simt::WideTile::n_256}) {
        const auto product = [&, slices = slices](Stream& s, const Gemm& op) {
          simt::run_sm90(s, op, tile, slices);
        };
        check_epilogue(*stream, DType::bf16, kind, {264, 264, 200},
                       {no, yes, Accumulate::overwrite, true}, product);
        check_epilogue(*stream, DType::bf16, kind, {136, 257, 200}, {no, yes}, product);
      }
    }
  }
}

TEST(EpiloguesEmulated, OfGroupsByEveryKernel) {
  const auto device = make_policy_device({.order = simt::ThreadOrder::random,
                                          .seed = 7,
                                          .compute_capability = 90,
                                          .multiprocessors = 2});
  const auto stream = device->make_stream();
  const Groups groups{{0, 0, 160, 448, 480, 480}, 264, 72};
  for (const EpilogueKind kind : kinds) {
    for (const Transpose transpose_b : {no, yes}) {
      for (const simt::Tile tile : {simt::Tile::side_64, simt::Tile::side_128}) {
        check_groups(*stream, DType::bf16, kind, groups, transpose_b,
                     [&](Stream& s, const GroupedGemm& op) { simt::run_bf16(s, op, tile); });
      }
      for (const simt::WideTile tile : {simt::WideTile::n_128, simt::WideTile::n_256}) {
        check_groups(*stream, DType::bf16, kind, groups, transpose_b,
                     [&](Stream& s, const GroupedGemm& op) { simt::run_sm90(s, op, tile); });
      }
    }
  }
}

// The f32 kernel's tiles, on a GPU large enough to cut k and on one too small.
TEST(EpiloguesEmulated, OfTheTilesOfF32) {
  for (const int multiprocessors : {1, 9}) {
    const auto device = make_policy_device({.multiprocessors = multiprocessors});
    const auto stream = device->make_stream();
    for (const EpilogueKind kind : kinds) {
      for (const Size& size : {Size{133, 8, 333}, Size{8, 133, 700}, Size{17, 17, 333}}) {
        check_epilogue(*stream, DType::f32, kind, size, {no, yes, Accumulate::overwrite, true});
      }
    }
  }
}

TEST(EpilogueErrors, NameTheRule) {
  Guarded a = zeros(DType::bf16, {2, 4}), b = zeros(DType::bf16, {4, 3});
  Guarded c = zeros(DType::bf16, {2, 3}), other = c, wrong = zeros(DType::bf16, {3, 2});
  Guarded f32 = zeros(DType::f32, {2, 3});
  const auto error = [&](const GemmEpilogue& epilogue, Guarded& result,
                         Accumulate accumulate = Accumulate::overwrite) {
    return error_of(
        Gemm{.a = a, .b = b, .c = result, .accumulate = accumulate, .epilogue = epilogue});
  };
  using enum EpilogueKind;
  EXPECT_EQ(error({.kind = silu_gate}, c), "Gemm: operand other is missing");
  EXPECT_EQ(error({.kind = residual, .other = wrong}, c),
            "Gemm: other has shape [3, 2], expected [2, 3]");
  EXPECT_EQ(error({.kind = residual, .other = f32}, c),
            "Gemm: other has dtype f32, which the operation does not take");
  EXPECT_EQ(error({.kind = quick_gelu, .pre = wrong}, c),
            "Gemm: pre has shape [3, 2], expected [2, 3]");
  EXPECT_EQ(error({.kind = quick_gelu, .other = other}, c), "Gemm: the epilogue reads no other");
  EXPECT_EQ(error({.kind = residual, .other = other, .pre = other}, c),
            "Gemm: the epilogue's backward needs no pre");
  EXPECT_EQ(error({.pre = other}, c), "Gemm: the epilogue's backward needs no pre");
  EXPECT_EQ(error({.kind = quick_gelu}, f32), "Gemm: with an epilogue c has a's dtype");
  EXPECT_EQ(error({.kind = quick_gelu}, c, Accumulate::add),
            "Gemm: an epilogue does not accumulate");

  Guarded stack = zeros(DType::bf16, {1, 4, 3}), offsets = integers({2}, std::vector{0, 0});
  EXPECT_EQ(error_of(GroupedGemm{.a = a,
                                 .b = stack,
                                 .c = c,
                                 .row_offsets = offsets,
                                 .epilogue = {.kind = silu_gate, .other = wrong}}),
            "GroupedGemm: other has shape [3, 2], expected [2, 3]");
}

}  // namespace
}  // namespace orchard::testing
