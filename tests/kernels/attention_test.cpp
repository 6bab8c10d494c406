// Attention against an fp64 reference that holds the whole score matrix.
#include "tests/kernels/attention_test.h"

#include <omp.h>

#include <array>
#include <limits>
#include <numeric>
#include <optional>

#include "tests/kernels/attention_counts.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/environment.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

using Case = AttentionCase;
using Problem = AttentionProblem;
using Reference = AttentionResults<double>;

void expect_within(const Guarded& actual, const std::vector<double>& expected,
                   const std::vector<double>& terms, double bound, const char* what) {
  for (std::int64_t i = 0; i < actual.size(); ++i) {
    const auto n = static_cast<std::size_t>(i);
    const double tolerance = bound * std::max(std::abs(expected[n]), terms[n]) + 1e-30;
    ASSERT_TRUE(std::abs(actual.at(i) - expected[n]) <= tolerance)  // false for NaN, too
        << what << "[" << i << "] of " << fmt::format("{}", actual.shape()) << " is "
        << actual.at(i) << ", expected " << expected[n] << " within " << tolerance;
  }
}

// Scores are fp32 dot products of head_dim terms: their error is about sqrt(head_dim) roundoffs
// of their size, and becomes a relative error of the probabilities. The sums over keys add
// sqrt(keys) roundoffs. Then one rounding to the dtype.
double fp32_bound(const Problem& p) {
  const double keys = p.key_shape[0] + 1.0;
  return (16 + 4 * std::sqrt(p.c.head_dim) * std::max(p.c.logits, 1.0) + 4 * std::sqrt(keys)) *
         unit_roundoff(DType::f32);
}

void expect_forward(const Problem& p, const Reference& expected) {
  // In bf16 the probabilities are rounded before they meet v, which adds at most u·Σ p|v| to the
  // error of `out`. The result is rounded once more.
  const double bound = fp32_bound(p) + (p.c.dtype == b16 ? 2 : 1) * unit_roundoff(p.c.dtype);
  expect_within(p.out, expected.out, expected.out_terms, bound, "out");
  for (std::int64_t i = 0; i < p.log_sum_exp.size(); ++i) {
    const double value = expected.log_sum_exp[static_cast<std::size_t>(i)];
    if (std::isinf(value)) {
      ASSERT_EQ(p.log_sum_exp.at(i), value) << "log_sum_exp of a query that sees nothing, " << i;
    } else {
      ASSERT_NEAR(p.log_sum_exp.at(i), value, fp32_bound(p) * std::max(1.0, std::abs(value))) << i;
    }
  }
}

void expect_backward(const Problem& p, const Reference& expected) {
  // In bf16, `out` is rounded before it reaches dS through D = rowsum(d_out ∘ out). Its roundings
  // are independent, so D is wrong by about u·‖d_out ∘ out‖ / √3; three times that is 2u. The
  // stored gradient is rounded once more.
  const double bound = fp32_bound(p) + 3 * unit_roundoff(p.c.dtype);
  expect_within(p.d_q, expected.d_q, expected.d_q_terms, bound, "d_q");
  expect_within(p.d_k, expected.d_k, expected.d_k_terms, bound, "d_k");
  expect_within(p.d_v, expected.d_v, expected.d_v_terms, bound, "d_v");
}

void expect_zeros_outside_documents(const Problem& p) {
  const auto expect_zero = [&](const Guarded& tensor, int begin, int end, const char* what) {
    const std::int64_t cols = tensor.size() / std::max<std::int64_t>(tensor.shape()[0], 1);
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      const bool inside = i >= begin * cols && i < end * cols;
      ASSERT_TRUE(inside || tensor.at(i) == 0) << what << " " << i;
    }
  };
  expect_zero(p.out, p.query_offset.front(), p.query_offset.back(), "out");
  expect_zero(p.d_q, p.query_offset.front(), p.query_offset.back(), "d_q");
  expect_zero(p.d_k, p.key_offset.front(), p.key_offset.back(), "d_k");
  expect_zero(p.d_v, p.key_offset.front(), p.key_offset.back(), "d_v");
}

using AttentionOnDevice = DeviceTest<Case>;

TEST_P(AttentionOnDevice, MatchesReference) {
  Problem p(parameter());
  run_both(stream(), p);
  const Reference expected(p);
  expect_forward(p, expected);
  expect_backward(p, expected);
  expect_zeros_outside_documents(p);

  Problem again(parameter());
  run_both(stream(), again);
  EXPECT_TRUE(p.same_results(again)) << "two runs differ";
}

class AttentionOnCpu : public ::testing::TestWithParam<Case> {};

// Sums of another order, or a race, would show here. Seven threads exceed the number of documents
// and heads of most cases, so that backward takes its two-pass plan.
TEST_P(AttentionOnCpu, DoesNotDependOnThreads) {
  Problem one(GetParam()), two(GetParam()), seven(GetParam());
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  run_both(one);
  omp_set_num_threads(2);
  run_both(two);
  omp_set_num_threads(7);
  run_both(seven);
  omp_set_num_threads(threads);
  EXPECT_TRUE(one.same_results(two)) << "1 and 2 threads differ";
  EXPECT_TRUE(one.same_results(seven)) << "1 and 7 threads differ";
}

const auto shapes = ::testing::Values(
    Case{f32, 1, 1, 1, {1}}, Case{f32, 2, 1, 64, {1, 63, 64, 65, 127}},
    Case{f32, 8, 1, 24, {0, 5, 0, 70, 0}, {}, Mask::causal, 3}, Case{f32, 2, 1, 80, {300, 17}},
    Case{f32, 2, 2, 128, {129, 64}}, Case{f32, 2, 1, 256, {65}}, Case{f32, 3, 3, 1, {67}},
    Case{f32, 2, 2, 32, {65, 65}, {}, Mask::full}, Case{f32, 2, 2, 80, {257}, {}, Mask::full},
    Case{f32, 2, 2, 61, {127}, {}, Mask::full, 1},
    Case{f32, 4, 1, 64, {}, {}, Mask::causal, 2},            // no document at all
    Case{f32, 2, 1, 24, {}}, Case{f32, 2, 1, 24, {5}, {0}},  // no row of q, of k
    Case{f32, 4, 2, 64, {1, 1, 3}, {300, 64, 65}},           // a cache of keys
    Case{f32, 2, 1, 24, {100, 40, 7, 0}, {30, 0, 7, 9}},     // queries that see no key
    Case{f32, 2, 1, 24, {10, 40, 0}, {130, 0, 5}, Mask::full, 2},
    Case{f32, 1, 1, 64, {300}, {}, Mask::causal, 0, 30},  // peaked distributions
    Case{b16, 1, 1, 1, {1}}, Case{b16, 2, 1, 64, {63, 64, 65}},
    Case{b16, 8, 1, 24, {0, 5, 127, 1}, {}, Mask::causal, 3},
    Case{b16, 2, 2, 80, {257}, {}, Mask::full}, Case{b16, 2, 1, 128, {1, 2}, {300, 65}},
    Case{b16, 2, 1, 256, {70}}, Case{b16, 2, 1, 100, {65, 3}});

// What the tensor-core kernels treat in a way of its own: more than one tile of queries and keys,
// each instance and head_dims that are padded to it, queries that see no key, rows in no document.
const auto tensor_core_shapes = ::testing::Values(
    Case{b16, 1, 1, 64, {129}}, Case{b16, 2, 1, 128, {130, 1}}, Case{b16, 1, 1, 96, {200}},
    Case{b16, 1, 1, 80, {140}}, Case{b16, 1, 1, 72, {65, 30}, {}, Mask::full, 2},
    Case{b16, 2, 2, 120, {33}, {}, Mask::full}, Case{b16, 2, 1, 88, {40, 7, 0}, {10, 0, 9}},
    Case{b16, 4, 2, 64, {1, 1, 3}, {150, 64, 65}},
    Case{b16, 2, 1, 128, {70, 10, 0}, {130, 0, 5}, Mask::full, 2},
    Case{b16, 1, 1, 64, {300}, {}, Mask::causal, 0, 30},
    Case{b16, 2, 1, 32, {}, {}, Mask::causal, 2}, Case{b16, 2, 1, 64, {5}, {0}});

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionOnDevice, ::testing::Combine(every_device(), shapes),
                         device_test_name<Case>);
INSTANTIATE_TEST_SUITE_P(TensorCoreShapes, AttentionOnDevice,
                         ::testing::Combine(every_device(), tensor_core_shapes),
                         device_test_name<Case>);
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionOnCpu, shapes);

Problem run_on_simt(const Case& c, const SimtOptions& options) {
  Problem p(c);
  const auto device = make_policy_device(options);
  run_both(*device->make_stream(), p);
  return p;
}

class AttentionOnSm90 : public ::testing::TestWithParam<Case> {};

// On a GPU of sm_90 the tests above take these kernels, too.
TEST_P(AttentionOnSm90, MatchesReference) {
  const Problem p = run_on_simt(GetParam(), {.compute_capability = 90});
  const Reference expected(p);
  expect_forward(p, expected);
  expect_backward(p, expected);
  expect_zeros_outside_documents(p);
  for (const SimtOptions& options :
       {SimtOptions{.completion = simt::AsyncCompletion::eager, .compute_capability = 90},
        SimtOptions{.order = simt::ThreadOrder::reverse, .compute_capability = 90},
        SimtOptions{.order = simt::ThreadOrder::random, .seed = 1, .compute_capability = 90}}) {
    EXPECT_TRUE(p.same_results(run_on_simt(GetParam(), options)));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionOnSm90,
                         ::testing::Values(Case{b16, 1, 1, 128, {1}},
                                           Case{b16, 2, 1, 128, {130, 1}},
                                           Case{b16, 1, 1, 128, {300}, {}, Mask::causal, 3},
                                           Case{b16, 1, 1, 128, {260}, {}, Mask::full},
                                           Case{b16, 1, 1, 128, {64, 0, 70}, {400, 7, 30}},
                                           Case{b16, 2, 2, 128, {40, 9, 0}, {10, 0, 9}},
                                           Case{b16, 3, 1, 128, {129, 63, 65, 127}},
                                           Case{b16, 4, 2, 128, {193, 70}, {}, Mask::full, 5},
                                           Case{b16, 2, 1, 128, {100, 3}, {37, 200}},
                                           Case{b16, 1, 1, 128, {0, 131, 0}, {0, 333, 5}},
                                           Case{b16, 1, 1, 128, {200}, {}, Mask::causal, 0, 30},
                                           Case{b16, 2, 1, 128, {}, {}, Mask::causal, 2},
                                           Case{b16, 2, 1, 128, {5}, {0}},
                                           Case{b16, 3, 1, 64, {129, 63, 65, 127}},
                                           Case{b16, 2, 2, 64, {260, 1}, {}, Mask::full, 3},
                                           Case{b16, 2, 1, 64, {64, 0, 70, 5}, {400, 7, 30, 0}},
                                           Case{b16, 1, 1, 64, {300}, {}, Mask::causal, 0, 30}));

// Forward's tiles of 192 queries: of a part of their three warpgroups, of one that sees a tile of keys less
// than the others, or nothing, and of more tiles of keys than its ring holds.
INSTANTIATE_TEST_SUITE_P(TilesOf192, AttentionOnSm90,
                         ::testing::Values(Case{b16, 1, 1, 64, {1}},
                                           Case{b16, 1, 1, 64, {191, 64, 128}},
                                           Case{b16, 1, 1, 64, {192, 193}, {}, Mask::causal, 3},
                                           Case{b16, 2, 1, 64, {193, 70}, {}, Mask::full, 5},
                                           Case{b16, 1, 1, 64, {0, 131, 0}, {0, 520, 5}},
                                           Case{b16, 1, 1, 64, {200, 100}, {20, 37}},
                                           Case{b16, 2, 1, 64, {}, {}, Mask::causal, 2},
                                           Case{b16, 2, 1, 64, {5}, {0}}));

// On GPUs that give a block 99 KB of shared memory, where sm_80 gives 163: each sum has the same terms in
// the same order, whatever the tiles.
class AttentionEmulatedInLittleSharedMemory : public ::testing::TestWithParam<Case> {};

TEST_P(AttentionEmulatedInLittleSharedMemory, HasTheBitsOfLargerTiles) {
  const Problem p = run_on_simt(GetParam(), {.shared_bytes_limit = least_shared_bytes});
  const Reference expected(p);
  expect_forward(p, expected);
  expect_backward(p, expected);
  expect_zeros_outside_documents(p);
  EXPECT_TRUE(p.same_results(run_on_simt(GetParam(), simt_options(GpuArch::sm_80))));
}

// Documents that end within a tile of columns, of more than one tile of rows, seen through a mask that
// cuts tiles, and by several heads.
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionEmulatedInLittleSharedMemory,
                         ::testing::Values(Case{b16, 2, 1, 64, {70}}, Case{b16, 1, 1, 80, {70}},
                                           Case{b16, 2, 1, 96, {150}},
                                           Case{b16, 1, 1, 88, {40, 7, 0}, {150, 0, 9}},
                                           Case{b16, 2, 1, 128, {150, 17}},
                                           Case{b16, 1, 1, 120, {33}, {}, Mask::full, 2},
                                           Case{b16, 1, 1, 128, {5, 60}, {40, 30}},
                                           Case{f32, 2, 1, 128, {40}}, Case{f32, 2, 1, 256, {40}},
                                           Case{b16, 1, 1, 200, {5, 20}, {18, 30}}));

TEST(AttentionOnGpu, DoesNotDependOnTheOrderOfThreadsAndCopies) {
  for (const Case& c : {Case{b16, 2, 1, 64, {70, 40}}, Case{b16, 1, 1, 128, {5, 70}, {40, 100}},
                        Case{f32, 2, 1, 64, {40, 20}}}) {
    const Problem fifo = run_on_simt(c, {});
    EXPECT_TRUE(fifo.same_results(run_on_simt(c, {.order = simt::ThreadOrder::reverse})));
    EXPECT_TRUE(fifo.same_results(run_on_simt(c, {.completion = simt::AsyncCompletion::eager})));
    for (const std::uint64_t seed : {1, 2}) {
      const SimtOptions options{.order = simt::ThreadOrder::random, .seed = seed};
      EXPECT_TRUE(fifo.same_results(run_on_simt(c, options))) << "seed " << seed;
    }
  }
}

// Documents of many tiles, with every kernel for tensor cores that this GPU has, at its own
// speed. A device reads the limit when it first computes attention.
TEST(AttentionOnGpu, LongDocumentsWithEveryKernel) {
  for (const std::int64_t head_dim : {64, 128}) {
    const Case c{b16, 3, 1, head_dim, {1000, 77, 450}};
    std::optional<Reference> expected;
    for (const char* const kernel : {"sm80", "sm90"}) {
      SCOPED_TRACE(kernel);
      const Environment environment("ORCHARD_GPU_ATTENTION", kernel);
      const FoundDevice found = find_device(DeviceKind::cuda);
      if (!found.device) GTEST_SKIP() << found.absence;
      const auto stream = found.device->make_stream();
      Problem p(c);
      run_both(*stream, p);
      if (!expected) expected.emplace(p);
      expect_forward(p, *expected);
      expect_backward(p, *expected);
      for (int i = 0; i < 20; ++i) {
        Problem again(c);
        run_both(*stream, again);
        ASSERT_TRUE(p.same_results(again)) << "two runs differ";
      }
    }
  }
}

// In the tiles of sm_80, and in those of GPUs with less shared memory where these are others.
std::vector<simt::Counters> backward_counts(const Case& c) {
  std::vector<simt::Counters> out{count(c, backward)};
  if (c.head_dim > 80) out.push_back(count(c, backward, 80, least_shared_bytes));
  return out;
}
constexpr std::array<std::int64_t, 4> tensor_core_head_dims{64, 80, 96, 128};

TEST(AttentionOnGpu, UsesTheBanksOfSharedMemoryWithoutConflicts) {
  for (const std::int64_t head_dim : tensor_core_head_dims) {
    SCOPED_TRACE(head_dim);
    const Case c{b16, 1, 1, head_dim, {130}};
    const simt::Counters counters = count(c, forward);
    // Nothing in the loop. But a tile of two rows writes its columns from 64 on in two wavefronts, though
    // one would hold them; and nvcc has all lanes read three words as one of 16 bytes, which the emulator
    // serves eight lanes at a time.
    EXPECT_LE(counters.shared_loads.excess(), counters.shared_loads.ideal_wavefronts / 20);
    EXPECT_EQ(counters.shared_stores.excess(), 0u);
    // Backward reads two neighbouring columns' log_sum_exp, and D, at once: 8 bytes a lane, of which
    // the emulator serves half a warp in a wavefront, though there are but 32 different ones.
    for (const simt::Counters& gradients : backward_counts(c)) {
      EXPECT_LE(gradients.shared_loads.excess(), gradients.shared_loads.ideal_wavefronts / 20);
      EXPECT_EQ(gradients.shared_stores.excess(), 0u);
    }
  }
}

TEST(AttentionOnGpu, TakesNoKernelBeyondTheOneThatTheEnvironmentNames) {
  const auto under = [](const char* limit, auto run_operation, int compute_capability) {
    const Environment environment("ORCHARD_GPU_ATTENTION", limit);
    return count({b16, 1, 1, 64, {16}}, run_operation, compute_capability);
  };
  EXPECT_GT(under("auto", forward, 80).tensor_flops, 0u);
  EXPECT_GT(under("sm80", forward, 80).tensor_flops, 0u);
  EXPECT_EQ(under("fma", forward, 80).tensor_flops, 0u);
  const auto expect_limits_on_sm90 = [&](auto run_operation) {
    EXPECT_GT(under("auto", run_operation, 90).tensor_load_bytes, 0u);
    EXPECT_GT(under("sm90", run_operation, 90).tensor_load_bytes, 0u);
    EXPECT_EQ(under("sm80", run_operation, 90).tensor_load_bytes, 0u);
    EXPECT_GT(under("sm80", run_operation, 90).tensor_flops, 0u);
  };
  expect_limits_on_sm90(forward);
  expect_limits_on_sm90(backward);
  EXPECT_THROW(under("fast", forward, 80), Error);
}

// One tile each way: every kernel reads its operands once. What it reads beyond them are log_sum_exp and D,
// and up to ten offsets for each warp of two blocks, of which one is spare.
TEST(AttentionOnGpu, MovesEachByteOnceInFullSectors) {
  for (const std::int64_t head_dim : tensor_core_head_dims) {
    SCOPED_TRACE(head_dim);
    const std::uint64_t tensor = 128 * head_dim * 2 / 32, rows = 128 * 4 / 32;  // sectors
    const std::uint64_t backward_warps = head_dim == 64 ? 4 : 8;
    const Case c{b16, 1, 1, head_dim, {128}, {}, Mask::full};
    const simt::Counters out = count(c, forward);
    report_forward("attention_forward_sm80", c, out);
    EXPECT_LE(out.loads.sectors, 3 * tensor + 10 * 2 * 4);
    EXPECT_EQ(out.stores.sectors, tensor + rows);
    const std::vector<simt::Counters> all_gradients = backward_counts(c);
    report_backward("attention_backward_sm80", c, all_gradients.front());
    for (const simt::Counters& gradients : all_gradients) {
      // D's kernel reads two tensors, those of d_q and of d_k and d_v four each.
      EXPECT_LE(gradients.loads.sectors, 10 * tensor + 2 * (2 * rows + 10 * 2 * backward_warps));
      // D: a warp writes those of four or two rows together.
      EXPECT_EQ(gradients.stores.sectors, 3 * tensor + 128 / (head_dim == 64 ? 4 : 2));
    }
  }
}

TEST(AttentionOnGpu, ComputesNoTileThatTheMaskHides) {
  constexpr std::uint64_t n = 256;
  // Rows meet what the mask leaves of their keys, or queries, in tiles of as many or more.
  const auto pairs = [](std::uint64_t columns) {
    std::uint64_t sum = 0;
    for (std::uint64_t row = 0; row < n; row += columns) sum += columns * (row + columns);
    return sum;
  };
  for (const std::int64_t dim : tensor_core_head_dims) {
    SCOPED_TRACE(dim);
    const Case full{b16, 1, 1, dim, {n}, {}, Mask::full}, causal{b16, 1, 1, dim, {n}};
    EXPECT_EQ(count(full, forward).tensor_flops, 4 * n * n * dim);
    const simt::Counters out = count(causal, forward);
    report_forward("attention_forward_sm80", causal, out);
    EXPECT_EQ(out.tensor_flops, 4 * pairs(32) * dim);
    // Both kernels make the scores. In little shared memory a head_dim of 128 has tiles of 16.
    for (const simt::Counters& gradients : backward_counts(full)) {
      EXPECT_EQ(gradients.tensor_flops, 14 * n * n * dim);
    }
    const std::vector<simt::Counters> gradients = backward_counts(causal);
    report_backward("attention_backward_sm80", causal, gradients.front());
    EXPECT_EQ(gradients.front().tensor_flops, 14 * pairs(32) * dim);
    EXPECT_EQ(gradients.back().tensor_flops, 14 * pairs(dim == 128 ? 16 : 32) * dim);
  }
}

// Persistent blocks add to the counter of tiles once for each, spare ones included, once more each, and the
// last one takes all off again: words of 4 bytes in one sector.
constexpr std::uint64_t takes_of(std::uint64_t tiles) {
  constexpr std::uint64_t blocks = 2;  // as SimtOptions has multiprocessors
  return tiles + blocks + 1;
}

// A tile's q, and the keys and values that it sees, tile by tile; out and log_sum_exp once.
TEST(AttentionOnGpu, WgmmaForwardMovesEachByteOnce) {
  struct Tile {
    std::int64_t head_dim;
    int queries;
  };
  constexpr int tiles = 2;
  constexpr std::uint64_t slots = tiles + 3, takes = takes_of(slots);
  for (const auto& [head_dim, queries] : {Tile{64, 192}, Tile{128, 128}}) {
    SCOPED_TRACE(head_dim);
    const Case c{b16, 1, 1, head_dim, {tiles * queries}, {}, Mask::full};
    const std::uint64_t rows = tiles * queries, tensor = rows * head_dim * 2;
    const simt::Counters out = count(c, forward, 90);
    report_forward("attention_forward_sm90", c, out);
    EXPECT_EQ(out.tensor_load_bytes, tensor + 2 * tiles * tensor);
    EXPECT_EQ(out.stores.bytes, tensor + 4 * rows + 4 * takes);
    // A lane stores two neighbouring sums, so that a request has 16 bytes of each of eight rows: half of
    // every sector, whose other half the next request brings to the same lines of L1 and L2. DRAM sees it once.
    EXPECT_EQ(out.stores.sectors, 2 * tensor / 32 + 4 * rows / 32 + takes);
    EXPECT_EQ(out.dram.written_bytes, tensor + 4 * rows + 32);
    // Offsets alone, by one warp, and the counter.
    EXPECT_LE(out.loads.sectors, 6 * slots + takes);
    // Nothing but wgmma reads shared memory, and nothing but the mbarriers' first states is stored there.
    EXPECT_EQ(out.shared_loads.requests, 0u);
    EXPECT_LE(out.shared_stores.bytes, 512u);
    EXPECT_EQ(out.shared_stores.excess(), 0u);
  }
}

TEST(AttentionOnGpu, WgmmaForwardComputesNoTileThatTheMaskHides) {
  struct Tile {
    std::int64_t head_dim;
    std::uint64_t queries;  // that meet the same tiles of 128 keys
  };
  constexpr std::uint64_t n = 384;
  for (const auto& [dim, queries] : {Tile{64, 64}, Tile{128, 128}}) {
    SCOPED_TRACE(dim);
    const Case full{b16, 1, 1, dim, {n}, {}, Mask::full}, causal{b16, 1, 1, dim, {n}};
    EXPECT_EQ(count(full, forward, 90).tensor_flops, 4 * n * n * dim);
    std::uint64_t pairs = 0;
    for (std::uint64_t row = 0; row < n; row += queries) {
      pairs += queries * ((row + queries + 127) / 128 * 128);
    }
    const simt::Counters out = count(causal, forward, 90);
    EXPECT_EQ(out.tensor_flops, 4 * pairs * dim);
    report_forward("attention_forward_sm90", causal, out);
    // A document shorter than a tile is one.
    EXPECT_EQ(count({b16, 1, 1, dim, {60}}, forward, 90).tensor_flops, 4 * queries * 128 * dim);
  }
}

// Backward's loads from shared memory, but for wgmma's own, are of two neighbouring queries' log_sum_exp,
// and D: see above. Each of them shows one wavefront too many, and nothing else does.
TEST(AttentionOnGpu, WgmmaBackwardUsesTheBanksOfSharedMemoryWithoutConflicts) {
  for (const std::int64_t dim : {64, 128}) {
    SCOPED_TRACE(dim);
    const simt::Counters gradients = count({b16, 1, 1, dim, {256}, {}, Mask::full}, backward, 90);
    // Of 2 tiles of keys and 4 of queries, 8 warps: for each 8 queries a load of either.
    EXPECT_EQ(gradients.shared_loads.requests, 2u * 4 * 8 * 8 * 2);
    EXPECT_EQ(gradients.shared_loads.excess(), gradients.shared_loads.requests);
    EXPECT_EQ(gradients.shared_stores.excess(), 0u);
  }
}

// The kernel of d_q reads queries' tensors once and keys' once a tile of queries, that of d_k and d_v
// the other way round.
TEST(AttentionOnGpu, WgmmaBackwardMovesEachByteOnceInFullSectors) {
  for (const std::int64_t dim : {64, 128}) {
    SCOPED_TRACE(dim);
    constexpr std::uint64_t tiles = 2, rows = 256;
    const std::uint64_t tensor = rows * dim * 2;
    const Case c{b16, 1, 1, dim, {rows}, {}, Mask::full};
    const simt::Counters gradients = count(c, backward, 90);
    report_backward("attention_backward_sm90", c, gradients);
    EXPECT_EQ(gradients.tensor_load_bytes, 2 * (2 * tensor + 2 * tiles * tensor));
    constexpr std::uint64_t slots = 2 * (tiles + 3), takes = takes_of(slots);
    EXPECT_EQ(gradients.stores.bytes, 3 * tensor + 4 * rows + 4 * takes);
    // D: a warp writes those of four or two rows together.
    EXPECT_EQ(gradients.stores.sectors, 3 * tensor / 32 + rows / (dim == 64 ? 4 : 2) + takes);
    // D's kernel reads d_out and out. Then there are log_sum_exp and D, once for d_q and once a tile of
    // keys, up to six offsets for each tile, and the counter.
    const std::uint64_t terms = 2 * rows * 4 / 32 * (1 + tiles), offsets = 6 * slots + takes;
    EXPECT_LE(gradients.loads.sectors, 2 * tensor / 32 + terms + offsets);
  }
}

TEST(AttentionOnGpu, WgmmaBackwardComputesNoTileThatTheMaskHides) {
  constexpr std::uint64_t n = 384;
  for (const std::int64_t dim : {64, 128}) {
    SCOPED_TRACE(dim);
    const Case full{b16, 1, 1, dim, {n}, {}, Mask::full}, causal{b16, 1, 1, dim, {n}};
    EXPECT_EQ(count(full, backward, 90).tensor_flops, 14 * n * n * dim);
    // 64 queries meet what the mask leaves in tiles of 128 keys, and 64 keys in tiles of 64 queries.
    std::uint64_t d_q_pairs = 0, d_k_pairs = 0;
    for (std::uint64_t row = 0; row < n; row += 64) {
      d_q_pairs += 64 * ((row + 64 + 127) / 128 * 128);
      d_k_pairs += 64 * (n - row);
    }
    const simt::Counters gradients = count(causal, backward, 90);
    report_backward("attention_backward_sm90", causal, gradients);
    EXPECT_EQ(gradients.tensor_flops, (6 * d_q_pairs + 8 * d_k_pairs) * dim);
    // A document of 64 rows or fewer is one warpgroup's.
    EXPECT_EQ(count({b16, 1, 1, dim, {60}}, backward, 90).tensor_flops,
              6 * 64 * 128 * dim + 8 * 64 * 64 * dim);
  }
}

using AttentionExtremes = DeviceTest<DType>;

// Scores of 1e4 would overflow exp() without the running maximum; the softmax is then one-hot.
TEST_P(AttentionExtremes, LargeScoresPickTheLargestKey) {
  constexpr std::int64_t keys = 130, dim = 4;
  Problem p({parameter(), 1, 1, dim, {1}, {keys}, Mask::full});
  for (std::int64_t e = 0; e < dim; ++e) p.q.set(e, 200);  // times the scale, 1/2
  for (std::int64_t i = 0; i < p.k.size(); ++i) p.k.set(i, 0);
  for (std::int64_t j = 0; j < keys; ++j) p.k.set(j * dim, j == 77 ? 110 : (j % 2 ? 100 : -100));
  run_both(stream(), p);
  for (std::int64_t e = 0; e < dim; ++e) EXPECT_FLOAT_EQ(p.out.at(e), p.v.at(77 * dim + e));
  EXPECT_NEAR(p.log_sum_exp.at(0), 11000, 11000 * 4 * unit_roundoff(f32));
}

// A NaN must reach the loss, where the step is refused; the other document stays clean.
TEST_P(AttentionExtremes, NanStaysInItsDocument) {
  Problem p({parameter(), 1, 1, 8, {40, 40}});
  p.q.set(20 * 8, std::nan(""));
  run_both(stream(), p);
  EXPECT_TRUE(std::isnan(p.out.at(20 * 8)));
  EXPECT_TRUE(std::isnan(p.d_k.at(0)));
  for (std::int64_t i = 40 * 8; i < p.out.size(); ++i) {
    ASSERT_TRUE(std::isfinite(p.out.at(i)) && std::isfinite(p.d_k.at(i))) << i;
  }
}

// The copy engine brings the rows of the next document along, too.
TEST(AttentionOnSm90Extremes, NanStaysInItsDocument) {
  for (const std::int64_t dim : {64, 128}) {
    for (Guarded Problem::*const operand :
         {&Problem::q, &Problem::k, &Problem::v, &Problem::d_out}) {
      Problem p({b16, 1, 1, dim, {40, 40, 40}});
      for (std::int64_t i = 45 * dim; i < 46 * dim; ++i) (p.*operand).set(i, std::nan(""));
      const auto device = make_policy_device({.compute_capability = 90});
      run_both(*device->make_stream(), p);
      EXPECT_TRUE(std::isnan(p.d_q.at(45 * dim)));
      for (std::int64_t i = 0; i < p.out.size(); ++i) {
        if (i >= 40 * dim && i < 80 * dim) continue;
        for (const Guarded* const result : {&p.out, &p.d_q, &p.d_k, &p.d_v}) {
          ASSERT_TRUE(std::isfinite(result->at(i))) << i << " at head_dim " << dim;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, AttentionExtremes,
                         ::testing::Combine(every_device(), ::testing::Values(f32, b16)),
                         device_test_name<DType>);

TEST(AttentionErrors, NameTheOperandAndTheRule) {
  const auto message = [](auto spoil_problem, auto spoil_operation) {
    Problem p({f32, 2, 1, 8, {4, 4}});
    spoil_problem(p);
    const auto stream = cpu_device().make_stream();
    AttentionProblemOnDevice on_device(*stream, p);
    AttentionForward op = on_device.forward();
    spoil_operation(op);
    try {
      run(*stream, op);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const auto keep = [](auto&) {};
  EXPECT_EQ(message(keep, [](AttentionForward& op) { op.log_sum_exp = op.out; }),
            "AttentionForward: log_sum_exp has shape [8, 2, 8], expected [8, 2]");
  EXPECT_EQ(message([](Problem& p) { p.query_offsets.set(1, 9); }, keep),
            "AttentionForward: query_offsets[1] = 9 is above the next offset, 8");
  EXPECT_EQ(message([](Problem& p) { p.query_offsets.set(2, 9); }, keep),
            "AttentionForward: query_offsets covers rows [0, 9), the tensor has 8");
}

}  // namespace
}  // namespace orchard::testing
