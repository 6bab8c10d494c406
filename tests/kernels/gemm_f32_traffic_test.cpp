// What the GPU's matrix products of f32 move, counted by the emulator.
#include "kernels/gemm/gemm_gpu.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/gemm_test.h"
#include "tests/kernels/kernel_counters.h"
#include "tests/kernels/ragged_groups.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

// No lane of a pass over the banks waits for another. (The emulator serves eight lanes that read 16
// bytes in one pass, also where all of a warp's read the same, so that its ideal of different words is
// out of reach.)
void expect_a_pass_for_each_128_bytes(const simt::SharedCounters& direction) {
  EXPECT_EQ(128 * direction.wavefronts, direction.bytes);
}

class GemmF32Traffic : public ::testing::Test {
 protected:
  // Runs `product` and counts.
  template <class Product>
  simt::Counters count(const Product& product) {
    stream_->synchronize();
    device_->reset_counters();
    product(*stream_);
    stream_->synchronize();
    return device_->counters();
  }

  simt::Counters count(const Size& size, const Form& form, int slices = 1) {
    const std::int64_t m = size.m, n = size.n, k = size.k;
    Guarded a = random_normal(DType::f32, form.ta() ? Shape{k, m} : Shape{m, k}, 1);
    Guarded b = random_normal(DType::f32, form.tb() ? Shape{n, k} : Shape{k, n}, 2);
    Guarded c(DType::f32, {m, n});
    OnDevice a_d(*stream_, a), b_d(*stream_, b), c_d(*stream_, c);
    const simt::Counters counters = count([&](Stream& stream) {
      run(stream, Gemm{.a = a_d,
                       .b = b_d,
                       .c = c_d,
                       .transpose_a = form.transpose_a,
                       .transpose_b = form.transpose_b});
    });
    // With the sums of slices, which are written and read again.
    const std::int64_t words = m * k + k * n + m * n * (slices > 1 ? 1 + 2 * slices : 1);
    report_counters(fmt::format("gemm_f32 {}{}{}", form.ta() ? 'T' : 'N', form.tb() ? 'T' : 'N',
                                slices > 1 ? " and split_k" : ""),
                    fmt::format("m {} n {} k {}", m, n, k), counters,
                    {.bytes = static_cast<std::uint64_t>(4 * words)});
    return counters;
  }

  const std::unique_ptr<SimtDevice> device_ =
      make_policy_device({.counting = simt::Counting::on, .multiprocessors = 2});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();
};

// Operands once a tile of the other's.
TEST_F(GemmF32Traffic, OfSquareTilesIsTheirRowsAndColumns) {
  constexpr std::int64_t m = 256, n = 384, k = 64, side = 128;
  for (const Form& form : transposes()) {
    SCOPED_TRACE(text(form, {m, n, k}));
    const simt::Counters counters = count({m, n, k}, form);
    EXPECT_EQ(counters.loads.bytes,
              static_cast<std::uint64_t>((m / side) * (n / side) * 2 * side * k * 4));
    EXPECT_EQ(counters.loads.sectors, counters.loads.ideal_sectors);
    EXPECT_EQ(counters.stores.bytes, static_cast<std::uint64_t>(m * n * 4));
    EXPECT_EQ(counters.stores.sectors, counters.stores.ideal_sectors);
    EXPECT_EQ(counters.shared_stores.bytes, counters.loads.bytes);
    expect_a_pass_for_each_128_bytes(counters.shared_stores);
    expect_a_pass_for_each_128_bytes(counters.shared_loads);
  }
}

// What the products of a router move: operands and result once, in whole sectors.
TEST_F(GemmF32Traffic, OfNarrowTilesIsOperandsAndResultOnce) {
  // Logits: the weights are read once a tile of rows.
  const simt::Counters logits = count({256, 8, 64}, {Transpose::no, Transpose::yes});
  EXPECT_EQ(logits.loads.bytes, 4u * (256 * 64 + 2 * 8 * 64));
  EXPECT_EQ(logits.loads.sectors, logits.loads.ideal_sectors);
  EXPECT_EQ(logits.stores.bytes, 4u * 256 * 8);
  EXPECT_EQ(logits.stores.sectors, logits.stores.ideal_sectors);
  expect_a_pass_for_each_128_bytes(logits.shared_stores);
  expect_a_pass_for_each_128_bytes(logits.shared_loads);
  // The weights' gradient, in four slices.
  const simt::Counters gradient = count({8, 128, 1024}, {Transpose::yes, Transpose::no}, 4);
  EXPECT_EQ(gradient.loads.bytes, 4u * (8 * 1024 + 128 * 1024 + 4 * 8 * 128));
  EXPECT_EQ(gradient.loads.sectors, gradient.loads.ideal_sectors);
  EXPECT_EQ(gradient.stores.bytes, 4u * (4 * 8 * 128 + 8 * 128));
  EXPECT_EQ(gradient.stores.sectors, gradient.stores.ideal_sectors);
  expect_a_pass_for_each_128_bytes(gradient.shared_stores);
  expect_a_pass_for_each_128_bytes(gradient.shared_loads);
}

// Groups of rows, and of depth, of tokens in order or named by an index: two rows a token.
TEST_F(GemmF32Traffic, OfGroupsIsTheirTiles) {
  const Groups groups;
  constexpr std::int64_t k = 64, n = 128, full = 4;  // groups with rows
  const std::int64_t rows = groups.rows(), tokens = rows / 2;
  Guarded weights = random_normal(DType::f32, {groups.count(), n, k}, 1);
  Guarded result(DType::f32, {rows, n}), d_result = random_normal(DType::f32, {rows, k}, 2);
  Guarded d_weights = random_normal(DType::f32, {groups.count(), k, n}, 3);
  Guarded offsets = integers({groups.count() + 1}, groups.offsets), source(DType::i32, {rows});
  for (std::int64_t row = 0; row < rows; ++row)
    source.set(row, static_cast<double>(7 * row % tokens));
  OnDevice weights_d(*stream_, weights), result_d(*stream_, result);
  OnDevice d_result_d(*stream_, d_result), d_weights_d(*stream_, d_weights);
  OnDevice offsets_d(*stream_, offsets), source_d(*stream_, source);
  const auto expect = [&](const std::string& what, const simt::Counters& counters,
                          std::int64_t words) {
    const auto bytes = static_cast<std::uint64_t>(4 * words);
    EXPECT_EQ(counters.dram.bytes(), bytes);
    // Threads that share a row ask for its index together.
    EXPECT_LE(counters.loads.sectors, counters.loads.ideal_sectors);
    EXPECT_EQ(counters.stores.sectors, counters.stores.ideal_sectors);
    expect_a_pass_for_each_128_bytes(counters.shared_stores);
    expect_a_pass_for_each_128_bytes(counters.shared_loads);
    report_counters(what, fmt::format("{} rows in 4 groups, k {} n {}", rows, k, n), counters,
                    {.bytes = bytes});
  };
  for (const bool named : {false, true}) {
    SCOPED_TRACE(named ? "tokens that an index names" : "tokens in order");
    const char* const how = named ? ", gathered" : "";
    const std::int64_t given = named ? tokens : rows, names = named ? rows : 0;
    Guarded x = random_normal(DType::f32, {given, k}, 4),
            y = random_normal(DType::f32, {given, n}, 5);
    OnDevice x_d(*stream_, x), y_d(*stream_, y);
    const ConstTensor index = named ? ConstTensor(source_d.tensor()) : ConstTensor{};
    const std::int64_t beside = names + 8;  // offsets: a sector

    const simt::Counters forward = count([&](Stream& stream) {
      simt::run_f32(stream, GroupedGemm{.a = x_d,
                                        .b = weights_d,
                                        .c = result_d,
                                        .row_offsets = offsets_d,
                                        .source = index,
                                        .transpose_b = Transpose::yes});
    });
    expect(fmt::format("gemm_f32 of groups of rows{}", how), forward,
           given * k + full * n * k + rows * n + beside);

    const simt::Counters gradient = count([&](Stream& stream) {
      simt::run_f32(stream, GroupedGemmWeightGradient{.a = d_result_d,
                                                      .b = y_d,
                                                      .d_b = d_weights_d,
                                                      .row_offsets = offsets_d,
                                                      .source = index});
    });
    expect(fmt::format("gemm_f32 of groups of depth{}", how), gradient,
           rows * k + given * n + 2 * full * k * n + beside);
  }
}

}  // namespace
}  // namespace orchard::testing
