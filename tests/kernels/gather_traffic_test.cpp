// What grouped products move whose tokens an index names, counted by the emulator: operands in whole sectors
// as ever, and of DRAM each token once, however many rows have it, the index and the offsets beside it.
#include <array>
#include <type_traits>

#include "kernels/gemm/gemm_gpu.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/gemm_test.h"
#include "tests/kernels/kernel_counters.h"
#include "tests/kernels/ragged_groups.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

using simt::Tile;
using simt::WideTile;

constexpr std::array wide_tiles{WideTile::n_128, WideTile::n_256};

int columns_of(WideTile tile) {
  return tile == WideTile::n_256 ? 256 : 128;
}

// Two rows a token.
class GatherTraffic : public ::testing::Test {
 protected:
  // Runs `product` with what it needs besides tokens of this width, and counts.
  template <class Operation, class Product>
  simt::Counters count(int compute_capability, std::int64_t width, Guarded& other, Guarded& result,
                       const Product& product) {
    const auto device = make_policy_device(
        {.counting = simt::Counting::on, .compute_capability = compute_capability});
    const auto stream = device->make_stream();
    Guarded tokens = random_normal(DType::bf16, {tokens_, width}, 1);
    Guarded offsets = integers({groups_.count() + 1}, groups_.offsets);
    Guarded source(DType::i32, {groups_.rows()});
    for (std::int64_t row = 0; row < groups_.rows(); ++row)
      source.set(row, static_cast<double>(7 * row % tokens_));
    OnDevice tokens_d(*stream, tokens), other_d(*stream, other), result_d(*stream, result);
    OnDevice offsets_d(*stream, offsets), source_d(*stream, source);
    device->reset_counters();
    if constexpr (std::is_same_v<Operation, GroupedGemm>) {
      product(*stream, GroupedGemm{.a = tokens_d,
                                   .b = other_d,
                                   .c = result_d,
                                   .row_offsets = offsets_d,
                                   .source = source_d,
                                   .transpose_b = Transpose::yes});
    } else {
      product(*stream, GroupedGemmWeightGradient{.a = other_d,
                                                 .b = tokens_d,
                                                 .d_b = result_d,
                                                 .row_offsets = offsets_d,
                                                 .source = source_d});
    }
    stream->synchronize();
    return device->counters();
  }

  static void expect_packed(const simt::Counters& counters) {
    // Threads that share a row ask for its index together.
    EXPECT_LE(counters.loads.sectors, counters.loads.ideal_sectors);
    EXPECT_EQ(counters.stores.sectors, counters.stores.ideal_sectors);
    EXPECT_EQ(counters.shared_loads.excess(), 0u);
    EXPECT_EQ(counters.shared_stores.excess(), 0u);
  }

  // Bytes of DRAM that a product of tokens of this width reads, beside its other operand.
  std::uint64_t named_bytes(std::int64_t width) const {
    constexpr std::int64_t offsets = 32;
    return static_cast<std::uint64_t>(2 * tokens_ * width + 4 * groups_.rows() + offsets);
  }

  const Groups groups_;
  const std::int64_t tokens_ = groups_.rows() / 2;
};

TEST_F(GatherTraffic, OfRows) {
  constexpr std::int64_t k = 64, n = 256, full = 4;
  const auto report = [&](const std::string& kernel, const simt::Counters& counters) {
    report_counters(kernel + " of groups of rows, gathered",
                    fmt::format("{} rows in 4 groups, k {} n {}", groups_.rows(), k, n), counters,
                    {.bytes = named_bytes(k) +
                              static_cast<std::uint64_t>(2 * full * n * k + 2 * groups_.rows() * n),
                     .tensor_flops = static_cast<std::uint64_t>(2 * groups_.rows() * n * k)});
  };
  Guarded b = random_normal(DType::bf16, {groups_.count(), n, k}, 2);
  Guarded c(DType::bf16, {groups_.rows(), n});
  const std::uint64_t read = named_bytes(k) + 2 * full * n * k;
  for (const Tile tile : {Tile::side_64, Tile::side_128}) {
    const std::int64_t side = tile == Tile::side_64 ? 64 : 128;
    SCOPED_TRACE(side);
    const simt::Counters counters = count<GroupedGemm>(
        80, k, b, c,
        [&](Stream& stream, const GroupedGemm& op) { simt::run_bf16(stream, op, tile); });
    EXPECT_EQ(counters.tensor_flops,
              static_cast<std::uint64_t>(2 * groups_.tiles(side) * side * n * k));
    EXPECT_EQ(counters.dram.read_bytes, read);
    expect_packed(counters);
    report(fmt::format("gemm_sm80 tile {}", side), counters);
  }
  for (const WideTile tile : wide_tiles) {
    const std::int64_t side = columns_of(tile);
    SCOPED_TRACE(side);
    const simt::Counters counters = count<GroupedGemm>(
        90, k, b, c,
        [&](Stream& stream, const GroupedGemm& op) { simt::run_sm90(stream, op, tile); });
    EXPECT_EQ(counters.tensor_flops,
              static_cast<std::uint64_t>(2 * groups_.tiles(128) * 128 * n * k));
    EXPECT_EQ(counters.tensor_load_bytes,
              static_cast<std::uint64_t>(2 * groups_.tiles(128) * (n / side) * side * k));
    EXPECT_EQ(counters.dram.read_bytes, read);
    EXPECT_EQ(counters.shared_loads.requests, 0u);
    expect_packed(counters);
    report(fmt::format("gemm_sm90 n {}", side), counters);
  }
}

TEST_F(GatherTraffic, OfDepth) {
  constexpr std::int64_t m = 128, n = 256, full = 4;
  Guarded a = random_normal(DType::bf16, {groups_.rows(), m}, 2);
  Guarded d_b = random_normal(DType::f32, {groups_.count(), m, n}, 3);
  const std::uint64_t read =
      named_bytes(n) + static_cast<std::uint64_t>(2 * groups_.rows() * m + 4 * full * m * n);
  const auto report = [&](const std::string& kernel, const simt::Counters& counters) {
    report_counters(kernel + " of groups of depth, gathered",
                    fmt::format("m {} n {}, {} rows in 4 groups", m, n, groups_.rows()), counters,
                    {.bytes = read + std::uint64_t{4 * full * m * n},
                     .tensor_flops = static_cast<std::uint64_t>(2 * groups_.rows() * m * n)});
  };
  for (const Tile tile : {Tile::side_64, Tile::side_128}) {
    const std::int64_t side = tile == Tile::side_64 ? 64 : 128;
    SCOPED_TRACE(side);
    const simt::Counters counters = count<GroupedGemmWeightGradient>(
        80, n, a, d_b, [&](Stream& stream, const GroupedGemmWeightGradient& op) {
          simt::run_bf16(stream, op, tile);
        });
    EXPECT_EQ(counters.tensor_flops, static_cast<std::uint64_t>(2 * groups_.rows() * m * n));
    EXPECT_EQ(counters.dram.read_bytes, read);
    expect_packed(counters);
    report(fmt::format("gemm_sm80 tile {}", side), counters);
  }
  const std::int64_t depth = 64 * groups_.tiles(64);
  for (const WideTile tile : wide_tiles) {
    const std::int64_t side = columns_of(tile);
    SCOPED_TRACE(side);
    const simt::Counters counters = count<GroupedGemmWeightGradient>(
        90, n, a, d_b, [&](Stream& stream, const GroupedGemmWeightGradient& op) {
          simt::run_sm90(stream, op, tile);
        });
    EXPECT_EQ(counters.tensor_flops, static_cast<std::uint64_t>(2 * depth * m * n));
    EXPECT_EQ(counters.tensor_load_bytes, static_cast<std::uint64_t>(2 * depth * (n / side) * m));
    EXPECT_EQ(counters.dram.read_bytes, read);
    EXPECT_EQ(counters.shared_loads.requests, 0u);
    expect_packed(counters);
    report(fmt::format("gemm_sm90 n {}", side), counters);
  }
}

}  // namespace
}  // namespace orchard::testing
