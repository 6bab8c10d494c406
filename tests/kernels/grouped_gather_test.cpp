// Grouped products whose tokens an index names: the bits of copying the rows first and multiplying then,
// whose values grouped_gemm_test holds, by every library, device and kernel. Tokens that no row names and
// rows after the last group hold NaN, and the index there names tokens that do not exist.
#include <omp.h>

#include <array>

#include "kernels/gemm/gemm_gpu.h"
#include "kernels/permute/permute.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/gemm_test.h"

namespace orchard::testing {
namespace {

constexpr Transpose no = Transpose::no, yes = Transpose::yes;
constexpr std::int64_t spare_rows = 5;

struct Problem {
  std::vector<int> offsets;
  std::int64_t tokens, k, n;

  std::int64_t groups() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  std::int64_t used() const { return offsets.back(); }
  std::int64_t rows() const { return used() + spare_rows; }
};

// Groups without rows first, amid and last, of a part of a tile and of several; rows of 16 bytes and not.
std::vector<Problem> problems() {
  return {{{0, 0, 32, 128, 128, 352, 384, 384}, 50, 48, 80},
          {{0, 32}, 1, 17, 5},
          {{0, 0, 0}, 3, 24, 40},
          {{0, 160, 192}, 70, 33, 65}};
}

// Tokens, the rows that are made of them, and the index that names them: a row in six is of zeros, the
// other tokens but the first have several rows.
class Tokens {
 public:
  Tokens(DType dtype, const Problem& p, std::int64_t width)
      : tokens(random_normal(dtype, {p.tokens, width}, 1)),
        source(DType::i32, {p.rows()}),
        named_below(source),
        rows(dtype, {p.rows(), width}),
        offsets(integers({p.groups() + 1}, p.offsets)) {
    std::mt19937 engine(7);
    const auto first = p.tokens > 1 ? 1 : 0, count = static_cast<int>(p.tokens) - first;
    for (std::int64_t row = 0; row < p.rows(); ++row) {
      const bool is_zeros = row >= p.used() || engine() % 6 == 0;
      source.set(row, is_zeros ? -1 : first + static_cast<int>(engine() % count));
      named_below.set(row, row >= p.used() ? 1 << 30 : source.at(row));
    }
    for (std::int64_t i = 0; i < first * width; ++i) tokens.set(i, std::nan(""));
    fill_nan(rows);
  }

  Guarded tokens;
  Guarded source;       // -1 after the last group, as the plan has it
  Guarded named_below;  // the same with tokens there that do not exist
  Guarded rows, offsets;
};

using RowsRunner = std::function<void(Stream&, const GroupedGemm&)>;
using DepthRunner = std::function<void(Stream&, const GroupedGemmWeightGradient&)>;

// The second of two runs by another number of threads.
template <class Run>
void run_by(int threads, const Run& run_once) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  run_once();
  omp_set_num_threads(before);
}

struct RowsForm {
  Transpose transpose_b = yes;
  Accumulate accumulate = Accumulate::overwrite;
  EpilogueKind epilogue = EpilogueKind::none;
};

void check_rows(Stream& stream, DType in, DType out, const Problem& p, const RowsForm& form,
                const RowsRunner& run_gemm) {
  SCOPED_TRACE(fmt::format("{} rows of {} tokens, k {}, n {}, transposed {}", p.used(), p.tokens,
                           p.k, p.n, form.transpose_b == yes));
  const bool gated = form.epilogue == EpilogueKind::silu_gate;
  Tokens x(in, p, p.k);
  Guarded b = random_normal(
      in, form.transpose_b == yes ? Shape{p.groups(), p.n, p.k} : Shape{p.groups(), p.k, p.n}, 2);
  Guarded other = random_normal(in, {p.rows(), p.n}, 3);
  Guarded copied = random_normal(out, {p.rows(), p.n}, 4);
  if (form.accumulate == Accumulate::overwrite) fill_nan(copied);  // must not be read
  for (std::int64_t i = p.used() * p.n; i < copied.size(); ++i) copied.set(i, std::nan(""));
  Guarded gathered = copied, again = copied, pre_copied = copied, pre_gathered = copied;
  {
    OnDevice tokens_d(stream, x.tokens), source_d(stream, x.source), rows_d(stream, x.rows);
    OnDevice named_d(stream, x.named_below), offsets_d(stream, x.offsets);
    OnDevice b_d(stream, b), other_d(stream, other);
    OnDevice copied_d(stream, copied), gathered_d(stream, gathered), again_d(stream, again);
    OnDevice pre_copied_d(stream, pre_copied), pre_gathered_d(stream, pre_gathered);
    run(stream, DispatchForward{
                    .x = tokens_d, .source = source_d, .row_offsets = offsets_d, .rows = rows_d});
    GroupedGemm op{.a = rows_d,
                   .b = b_d,
                   .c = copied_d,
                   .row_offsets = offsets_d,
                   .transpose_b = form.transpose_b,
                   .accumulate = form.accumulate,
                   .epilogue = {.kind = form.epilogue}};
    if (gated) op.epilogue.other = other_d.tensor();
    if (gated) op.epilogue.pre = pre_copied_d.tensor();
    run_gemm(stream, op);
    op.a = tokens_d.tensor();
    op.source = named_d.tensor();
    if (gated) op.epilogue.pre = pre_gathered_d.tensor();
    op.c = gathered_d.tensor();
    run_by(3, [&] { run_gemm(stream, op); });
    op.c = again_d.tensor();
    run_by(1, [&] { run_gemm(stream, op); });
    for (OnDevice* const result :
         {&copied_d, &gathered_d, &again_d, &pre_copied_d, &pre_gathered_d}) {
      result->download();
    }
    stream.synchronize();
  }
  EXPECT_TRUE(gathered == copied) << "not the bits of the copied rows' product";
  EXPECT_TRUE(again == gathered) << "two runs differ";
  EXPECT_TRUE(pre_gathered == pre_copied) << "pre is not that of the copied rows";
  for (std::int64_t i = 0; i < copied.size(); ++i)
    ASSERT_EQ(std::isnan(gathered.at(i)), i >= p.used() * p.n) << "element " << i;
}

void check_depth(Stream& stream, DType in, const Problem& p, const DepthRunner& run_gemm) {
  SCOPED_TRACE(fmt::format("{} rows of {} tokens, m {}, n {}", p.used(), p.tokens, p.k, p.n));
  Tokens x(in, p, p.n);
  Guarded a = random_normal(in, {p.rows(), p.k}, 2);
  for (std::int64_t i = p.used() * p.k; i < a.size(); ++i) a.set(i, std::nan(""));
  Guarded copied = random_normal(DType::f32, {p.groups(), p.k, p.n}, 3);
  const Guarded before = copied;
  Guarded gathered = copied, again = copied;
  {
    OnDevice tokens_d(stream, x.tokens), source_d(stream, x.source), rows_d(stream, x.rows);
    OnDevice named_d(stream, x.named_below), offsets_d(stream, x.offsets), a_d(stream, a);
    OnDevice copied_d(stream, copied), gathered_d(stream, gathered), again_d(stream, again);
    run(stream, DispatchForward{
                    .x = tokens_d, .source = source_d, .row_offsets = offsets_d, .rows = rows_d});
    GroupedGemmWeightGradient op{.a = a_d, .b = rows_d, .d_b = copied_d, .row_offsets = offsets_d};
    run_gemm(stream, op);
    op.b = tokens_d.tensor();
    op.source = named_d.tensor();
    op.d_b = gathered_d.tensor();
    run_by(3, [&] { run_gemm(stream, op); });
    op.d_b = again_d.tensor();
    run_by(1, [&] { run_gemm(stream, op); });
    for (OnDevice* const result : {&copied_d, &gathered_d, &again_d}) result->download();
    stream.synchronize();
  }
  EXPECT_TRUE(gathered == copied) << "not the bits of the copied rows' product";
  EXPECT_TRUE(again == gathered) << "two runs differ";
  EXPECT_EQ(gathered == before, p.used() == 0) << "nothing was added";
  for (std::int64_t i = 0; i < gathered.size(); ++i) ASSERT_FALSE(std::isnan(gathered.at(i))) << i;
}

void run_rows(Stream& stream, const GroupedGemm& op) {
  run(stream, op);
}

void run_depth(Stream& stream, const GroupedGemmWeightGradient& op) {
  run(stream, op);
}

class GroupedGathers : public LibraryTest {
 protected:
  std::unique_ptr<Stream> make_stream() const {
    return device_with(GetParam().library).make_stream();
  }
};

TEST_P(GroupedGathers, RowsAreThoseOfTheCopy) {
  const auto stream = make_stream();
  for (const Problem& p : problems()) {
    for (const Transpose transpose_b : {no, yes}) {
      for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add})
        check_rows(*stream, GetParam().in, GetParam().out, p, {transpose_b, accumulate}, run_rows);
    }
  }
}

TEST_P(GroupedGathers, RowsThroughAnEpilogue) {
  const auto [library, in, out] = GetParam();
  if (in != out) return;
  const auto stream = make_stream();
  for (const Problem& p : problems()) {
    check_rows(*stream, in, out, p, {.epilogue = EpilogueKind::silu_gate}, run_rows);
  }
}

TEST_P(GroupedGathers, WeightGradientsAreThoseOfTheCopy) {
  const auto stream = make_stream();
  for (const Problem& p : problems()) check_depth(*stream, GetParam().in, p, run_depth);
}

using GroupedGatherLibraries = GroupedGathers;

// Longer than a piece of a sum, and than a block of right-hand rows.
TEST_P(GroupedGatherLibraries, OfLongGroups) {
  const auto stream = make_stream();
  const Problem p{{0, 64, 2144, 2176}, 700, 130, 200};
  check_rows(*stream, GetParam().in, GetParam().out, p, {}, run_rows);
  check_depth(*stream, GetParam().in, p, run_depth);
}

const auto libraries = ::testing::ValuesIn(with_dtypes({"auto", "sgemm"}));

INSTANTIATE_TEST_SUITE_P(Cpu, GroupedGathers, libraries, name_of_case);
INSTANTIATE_TEST_SUITE_P(Gpu, GroupedGathers, ::testing::ValuesIn(gpu_cases()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Cpu, GroupedGatherLibraries, libraries, name_of_case);

// Every kernel for bf16 in other orders of threads and of copies. Two persistent blocks of sm_90a go from
// tile to tile with copies under way; a tile has more steps than the ring has stages, and ends within one.
class GroupedGathersEmulated : public ::testing::Test {
 protected:
  template <class Check>
  static void in_every_order(const Check& check) {
    using simt::AsyncCompletion;
    using simt::ThreadOrder;
    for (const auto& [completion, order] :
         {std::pair{AsyncCompletion::lazy, ThreadOrder::random},
          std::pair{AsyncCompletion::eager, ThreadOrder::reverse}}) {
      const auto device = make_policy_device({.order = order,
                                              .seed = 7,
                                              .completion = completion,
                                              .compute_capability = 90,
                                              .multiprocessors = 2});
      const auto stream = device->make_stream();
      check(*stream);
    }
  }

  static std::vector<RowsRunner> rows_kernels() {
    return {[](Stream& s, const GroupedGemm& op) { simt::run_bf16(s, op, simt::Tile::side_64); },
            [](Stream& s, const GroupedGemm& op) { simt::run_bf16(s, op, simt::Tile::side_128); },
            [](Stream& s, const GroupedGemm& op) { simt::run_sm90(s, op, simt::WideTile::n_128); },
            [](Stream& s, const GroupedGemm& op) { simt::run_sm90(s, op, simt::WideTile::n_256); }};
  }

  const Problem rows_{{0, 0, 160, 448, 480, 480}, 90, 360, 264};
};

TEST_F(GroupedGathersEmulated, RowsByEveryKernel) {
  in_every_order([&](Stream& stream) {
    for (const RowsRunner& kernel : rows_kernels())
      check_rows(stream, DType::bf16, DType::bf16, rows_, {}, kernel);
  });
}

TEST_F(GroupedGathersEmulated, RowsByEveryKernelThroughAnEpilogue) {
  in_every_order([&](Stream& stream) {
    for (const RowsRunner& kernel : rows_kernels()) {
      check_rows(stream, DType::bf16, DType::bf16, rows_, {.epilogue = EpilogueKind::silu_gate},
                 kernel);
    }
  });
}

TEST_F(GroupedGathersEmulated, WeightGradientsByEveryKernel) {
  const Problem p{{0, 0, 160, 576, 608, 608}, 90, 136, 264};
  in_every_order([&](Stream& stream) {
    for (const simt::Tile tile : {simt::Tile::side_64, simt::Tile::side_128}) {
      check_depth(stream, DType::bf16, p, [&](Stream& s, const GroupedGemmWeightGradient& op) {
        simt::run_bf16(s, op, tile);
      });
    }
    for (const simt::WideTile tile : {simt::WideTile::n_128, simt::WideTile::n_256}) {
      check_depth(stream, DType::bf16, p, [&](Stream& s, const GroupedGemmWeightGradient& op) {
        simt::run_sm90(s, op, tile);
      });
    }
  });
}

TEST(GroupedGatherErrors, NameTheRule) {
  Guarded tokens = zeros(DType::f32, {4, 8}), b = zeros(DType::f32, {1, 8, 3});
  Guarded c = zeros(DType::f32, {32, 3}), offsets = integers({2}, std::vector{0, 32});
  Guarded source = zeros(DType::i32, {32}), few = zeros(DType::i32, {4});
  Guarded floats = zeros(DType::f32, {32});
  const auto error = [&](ConstTensor named) {
    return error_of(
        GroupedGemm{.a = tokens, .b = b, .c = c, .row_offsets = offsets, .source = named});
  };
  EXPECT_EQ(error(source), "no error");
  EXPECT_EQ(error(few), "GroupedGemm: source has shape [4], expected [32]");
  EXPECT_EQ(error(floats), "GroupedGemm: source has dtype f32, which the operation does not take");
  EXPECT_EQ(error({}), "GroupedGemm: a has shape [4, 8], expected [32, 8]");
  source.set(31, 4);
  EXPECT_EQ(error(source), "GroupedGemm: source[31] is 4, outside [-1, 4)");

  Guarded a = zeros(DType::f32, {32, 3}), d_b = zeros(DType::f32, {1, 3, 8});
  Guarded narrow = zeros(DType::f32, {4, 7});
  const auto depth_error = [&](ConstTensor x) {
    return error_of(GroupedGemmWeightGradient{
        .a = a, .b = x, .d_b = d_b, .row_offsets = offsets, .source = source});
  };
  EXPECT_EQ(depth_error(narrow), "GroupedGemmWeightGradient: b has shape [4, 7], expected [4, 8]");
  EXPECT_EQ(depth_error(tokens), "GroupedGemmWeightGradient: source[31] is 4, outside [-1, 4)");
  source.set(31, -2);
  EXPECT_EQ(depth_error(tokens), "GroupedGemmWeightGradient: source[31] is -2, outside [-1, 4)");
}

}  // namespace
}  // namespace orchard::testing
