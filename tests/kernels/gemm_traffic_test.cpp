// What the GPU's matrix products move and compute, counted by the emulator.
#include <array>
#include <tuple>

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

// Of the operands and the result of a product, each once.
Compulsory of_product(const Size& size, DType out, Accumulate accumulate = Accumulate::overwrite) {
  const auto [m, n, k] = std::tuple(size.m, size.n, size.k);
  const auto result = m * n * static_cast<std::int64_t>(size_of(out));
  const std::int64_t moved =
      2 * (m * k + k * n) + (accumulate == Accumulate::add ? 2 * result : result);
  return {.bytes = static_cast<std::uint64_t>(moved),
          .tensor_flops = static_cast<std::uint64_t>(2 * m * n * k)};
}

std::string text(const Size& size) {
  return fmt::format("m {} n {} k {}", size.m, size.n, size.k);
}

std::string text(const Form& form, DType out) {
  return fmt::format("{}{} to {}", form.ta() ? 'T' : 'N', form.tb() ? 'T' : 'N', name_of(out));
}

// What the kernels move, exactly: no bank conflicts, whole sectors, no tensor work but the tiles'.
TEST(GemmTraffic, MovesWhatItMust) {
  const auto device = make_policy_device({.counting = simt::Counting::on});
  const auto stream = device->make_stream();
  constexpr std::int64_t m = 256, n = 128, k = 128;
  for (const Tile tile : {Tile::side_64, Tile::side_128}) {
    const std::int64_t side = tile == Tile::side_64 ? 64 : 128;
    for (const Form& form : transposes()) {
      for (const DType out : {DType::bf16, DType::f32}) {
        SCOPED_TRACE(fmt::format("{} tile {} to {}", text(form, {m, n, k}), side, name_of(out)));
        Guarded a = random_normal(DType::bf16, form.ta() ? Shape{k, m} : Shape{m, k}, 1);
        Guarded b = random_normal(DType::bf16, form.tb() ? Shape{n, k} : Shape{k, n}, 2);
        Guarded c(out, {m, n});
        OnDevice a_d(*stream, a), b_d(*stream, b), c_d(*stream, c);
        device->reset_counters();
        simt::run_bf16(*stream,
                       Gemm{.a = a_d,
                            .b = b_d,
                            .c = c_d,
                            .transpose_a = form.transpose_a,
                            .transpose_b = form.transpose_b},
                       tile);
        stream->synchronize();
        const simt::Counters& count = device->counters();
        EXPECT_EQ(count.tensor_flops, std::uint64_t{2 * m * n * k});
        const std::int64_t fetched = (m / side) * (n / side) * 2 * side * k * 2;
        EXPECT_EQ(count.loads.bytes, static_cast<std::uint64_t>(fetched));
        EXPECT_EQ(count.loads.sectors, count.loads.ideal_sectors);
        EXPECT_EQ(count.stores.bytes, static_cast<std::uint64_t>(m * n) * size_of(out));
        EXPECT_EQ(count.stores.sectors, count.stores.ideal_sectors);
        EXPECT_EQ(count.shared_loads.excess(), 0u);
        EXPECT_EQ(count.shared_stores.excess(), 0u);
        report_counters(fmt::format("gemm_sm80 tile {} {}", side, text(form, out)), text({m, n, k}),
                        count, of_product({m, n, k}, out));
      }
    }
  }
}

// The kernels of sm_90a: as above, and every byte of c by the copy engine.
TEST(GemmTraffic, TilesOfSm90MoveWhatTheyMust) {
  const auto device =
      make_policy_device({.counting = simt::Counting::on, .compute_capability = 90});
  const auto stream = device->make_stream();
  constexpr std::int64_t m = 256, n = 256, k = 128;
  for (const WideTile tile : wide_tiles) {
    const std::int64_t side = columns_of(tile);
    for (const Form& form : transposes()) {
      for (const DType out : {DType::bf16, DType::f32}) {
        SCOPED_TRACE(fmt::format("n {}, {} to {}", side, text(form, {m, n, k}), name_of(out)));
        const Accumulate accumulate = out == DType::f32 ? Accumulate::add : Accumulate::overwrite;
        Guarded a = random_normal(DType::bf16, form.ta() ? Shape{k, m} : Shape{m, k}, 1);
        Guarded b = random_normal(DType::bf16, form.tb() ? Shape{n, k} : Shape{k, n}, 2);
        Guarded c = random_normal(out, {m, n}, 3);
        OnDevice a_d(*stream, a), b_d(*stream, b), c_d(*stream, c);
        device->reset_counters();
        simt::run_sm90(*stream,
                       Gemm{.a = a_d,
                            .b = b_d,
                            .c = c_d,
                            .transpose_a = form.transpose_a,
                            .transpose_b = form.transpose_b,
                            .accumulate = accumulate},
                       tile);
        stream->synchronize();
        const simt::Counters& count = device->counters();
        EXPECT_EQ(count.tensor_flops, std::uint64_t{2 * m * n * k});
        EXPECT_EQ(count.tensor_load_bytes,
                  static_cast<std::uint64_t>((m / 128) * (n / side) * (128 + side) * k * 2));
        EXPECT_EQ(count.stores.bytes, 0u);
        EXPECT_EQ(count.tensor_store_bytes, static_cast<std::uint64_t>(m * n) * size_of(out));
        // Nothing but wgmma reads shared memory, in the swizzle whose eight rows of 16 bytes are in all banks.
        EXPECT_EQ(count.shared_loads.requests, 0u);
        // And the mbarriers' first states.
        EXPECT_NEAR(static_cast<double>(count.shared_stores.bytes),
                    static_cast<double>(m * n) * static_cast<double>(size_of(out)), 512);
        EXPECT_EQ(count.shared_stores.excess(), 0u);
        report_counters(fmt::format("gemm_sm90 n {} {}", side, text(form, out)), text({m, n, k}),
                        count, of_product({m, n, k}, out, accumulate));
      }
    }
  }
}

// Tensor work ends with the tile and the step of k that the product ends in.
TEST(GemmTraffic, TilesAtTheEdgeComputeNoneBeyondThem) {
  const auto device =
      make_policy_device({.counting = simt::Counting::on, .compute_capability = 90});
  const auto stream = device->make_stream();
  const auto expect = [&](const std::string& what, const Size& size, const Size& tile,
                          const GemmRunner& kernel) {
    SCOPED_TRACE(what + " of " + text(size));
    Guarded a = random_normal(DType::bf16, {size.m, size.k}, 1);
    Guarded b = random_normal(DType::bf16, {size.k, size.n}, 2);
    Guarded c(DType::bf16, {size.m, size.n});
    OnDevice a_d(*stream, a), b_d(*stream, b), c_d(*stream, c);
    device->reset_counters();
    kernel(*stream, Gemm{.a = a_d, .b = b_d, .c = c_d});
    stream->synchronize();
    const auto up = [](std::int64_t value, std::int64_t step) {
      return (value + step - 1) / step * step;
    };
    const std::int64_t padded = up(size.m, tile.m) * up(size.n, tile.n) * up(size.k, tile.k);
    EXPECT_EQ(device->counters().tensor_flops, static_cast<std::uint64_t>(2 * padded));
    report_counters(what, text(size), device->counters(), of_product(size, DType::bf16));
  };
  for (const Size& size : {Size{136, 72, 104}, Size{392, 264, 200}}) {
    for (const Tile tile : {Tile::side_64, Tile::side_128}) {
      const std::int64_t side = tile == Tile::side_64 ? 64 : 128;
      expect(fmt::format("gemm_sm80 tile {} at edges", side), size, {side, side, 32},
             [&](Stream& s, const Gemm& op) { simt::run_bf16(s, op, tile); });
    }
    for (const WideTile tile : wide_tiles) {
      expect(fmt::format("gemm_sm90 n {} at edges", columns_of(tile)), size,
             {128, columns_of(tile), 64},
             [&](Stream& s, const Gemm& op) { simt::run_sm90(s, op, tile); });
    }
  }
}

// Nothing of the next matrix is read where a product ends within a tile and a step of k.
TEST(GemmTraffic, ABatchMovesWhatItsProductsDo) {
  const auto device =
      make_policy_device({.counting = simt::Counting::on, .compute_capability = 90});
  const auto stream = device->make_stream();
  const auto count = [&](const Size& size, const GemmRunner& kernel) {
    Guarded a = random_normal(DType::bf16, size.matrices(size.m, size.k), 1);
    Guarded b = random_normal(DType::bf16, size.matrices(size.k, size.n), 2);
    Guarded c(DType::bf16, size.matrices(size.m, size.n));
    OnDevice a_d(*stream, a), b_d(*stream, b), c_d(*stream, c);
    device->reset_counters();
    kernel(*stream, Gemm{.a = a_d, .b = b_d, .c = c_d});
    stream->synchronize();
    return device->counters();
  };
  const std::array<GemmRunner, 2> kernels{
      [](Stream& s, const Gemm& op) { simt::run_bf16(s, op, Tile::side_64); },
      [](Stream& s, const Gemm& op) { simt::run_sm90(s, op, WideTile::n_128); }};
  for (const GemmRunner& kernel : kernels) {
    const simt::Counters one = count({136, 72, 104}, kernel),
                         all = count({136, 72, 104, 3}, kernel);
    EXPECT_EQ(all.tensor_flops, 3 * one.tensor_flops);
    EXPECT_EQ(all.loads.bytes, 3 * one.loads.bytes);
    EXPECT_EQ(all.loads.sectors, 3 * one.loads.sectors);
    EXPECT_EQ(all.tensor_load_bytes, 3 * one.tensor_load_bytes);
    EXPECT_EQ(all.stores.bytes, 3 * one.stores.bytes);
    EXPECT_EQ(all.stores.sectors, 3 * one.stores.sectors);
    EXPECT_EQ(all.tensor_store_bytes, 3 * one.tensor_store_bytes);
  }
}

// The second launch of a product cut in slices: every slice's sums once, the result once.
TEST(GemmTraffic, SlicesAreAddedUpInOnePass) {
  const auto device = make_policy_device({.counting = simt::Counting::on});
  const auto stream = device->make_stream();
  constexpr std::int64_t m = 128, n = 128, k = 1024;
  Guarded a = random_normal(DType::bf16, {m, k}, 1), b = random_normal(DType::bf16, {k, n}, 2);
  Guarded c = random_normal(DType::f32, {m, n}, 3);
  OnDevice a_d(*stream, a), b_d(*stream, b), c_d(*stream, c);
  const auto count = [&](int slices) {
    device->reset_counters();
    simt::run_bf16(*stream, Gemm{.a = a_d, .b = b_d, .c = c_d, .accumulate = Accumulate::add},
                   Tile::side_128, slices);
    stream->synchronize();
    return device->counters();
  };
  const simt::Counters whole = count(1), cut = count(4);
  constexpr std::uint64_t sums = 4 * m * n;
  EXPECT_EQ(cut.tensor_flops, whole.tensor_flops);
  EXPECT_EQ(cut.loads.bytes, whole.loads.bytes + 4 * sums);
  EXPECT_EQ(cut.stores.bytes, whole.stores.bytes + 4 * sums);
  EXPECT_EQ(cut.loads.sectors, cut.loads.ideal_sectors);
  EXPECT_EQ(cut.stores.sectors, cut.stores.ideal_sectors);
  Compulsory compulsory = of_product({m, n, k}, DType::f32, Accumulate::add);
  compulsory.bytes += 2 * 4 * sums;  // of each slice, written and read
  report_counters("gemm_sm80 tile 128 and split_k, 4 slices", text({m, n, k}), cut, compulsory);
}

// SwiGLU's gate in one launch: beside the product's operands `other` is read once; pre and c are
// written once; all in whole sectors, and no lane waits for a bank.
TEST(GemmTraffic, EpiloguesMoveWhatTheyMust) {
  const auto device =
      make_policy_device({.counting = simt::Counting::on, .compute_capability = 90});
  const auto stream = device->make_stream();
  constexpr std::int64_t m = 256, n = 256, k = 128;
  const auto check = [&](const std::string& kernel, std::int64_t fetched,
                         const GemmRunner& product) {
    Guarded a = random_normal(DType::bf16, {m, k}, 1), b = random_normal(DType::bf16, {n, k}, 2);
    Guarded other = random_normal(DType::bf16, {m, n}, 3);
    Guarded pre(DType::bf16, {m, n}), c(DType::bf16, {m, n});
    OnDevice a_d(*stream, a), b_d(*stream, b), other_d(*stream, other);
    OnDevice pre_d(*stream, pre), c_d(*stream, c);
    device->reset_counters();
    product(*stream, Gemm{.a = a_d,
                          .b = b_d,
                          .c = c_d,
                          .transpose_b = Transpose::yes,
                          .epilogue = {.kind = EpilogueKind::silu_gate,
                                       .other = other_d.tensor(),
                                       .pre = pre_d.tensor()}});
    stream->synchronize();
    const simt::Counters& count = device->counters();
    EXPECT_EQ(count.tensor_flops, std::uint64_t{2 * m * n * k});
    EXPECT_EQ(count.loads.bytes, static_cast<std::uint64_t>(fetched + m * n * 2));
    EXPECT_EQ(count.loads.sectors, count.loads.ideal_sectors);
    EXPECT_EQ(count.stores.bytes, std::uint64_t{2 * m * n * 2});
    EXPECT_EQ(count.stores.sectors, count.stores.ideal_sectors);
    EXPECT_EQ(count.shared_loads.excess(), 0u);
    EXPECT_EQ(count.shared_stores.excess(), 0u);
    Compulsory compulsory = of_product({m, n, k}, DType::bf16);
    compulsory.bytes += 2 * m * n * 2;  // other and pre
    report_counters(kernel + " with a SiLU gate", text({m, n, k}), count, compulsory);
  };
  for (const Tile tile : {Tile::side_64, Tile::side_128}) {
    const std::int64_t side = tile == Tile::side_64 ? 64 : 128;
    SCOPED_TRACE(side);
    check(fmt::format("gemm_sm80 tile {}", side), (m / side) * (n / side) * 2 * side * k * 2,
          [&](Stream& s, const Gemm& op) { simt::run_bf16(s, op, tile); });
  }
  for (const WideTile tile : wide_tiles) {
    SCOPED_TRACE(columns_of(tile));
    // The copy engine's bytes count apart.
    check(fmt::format("gemm_sm90 n {}", columns_of(tile)), 0,
          [&](Stream& s, const Gemm& op) { simt::run_sm90(s, op, tile); });
  }
}

// A row that no tile of its group has costs tensor work up to the tile's end, and no more; rows after the
// last group cost nothing.
TEST(GemmTraffic, GroupsOfRowsMoveTheirTiles) {
  const Groups groups;
  constexpr std::int64_t k = 64, n = 256, spare = 64;
  Guarded a = random_normal(DType::bf16, {groups.rows() + spare, k}, 1);
  Guarded b = random_normal(DType::bf16, {groups.count(), n, k}, 2);
  Guarded c(DType::bf16, {groups.rows() + spare, n});
  Guarded offsets = integers({groups.count() + 1}, groups.offsets);
  const auto count = [&](int compute_capability, auto product) {
    const auto device = make_policy_device(
        {.counting = simt::Counting::on, .compute_capability = compute_capability});
    const auto stream = device->make_stream();
    OnDevice a_d(*stream, a), b_d(*stream, b), c_d(*stream, c), offsets_d(*stream, offsets);
    device->reset_counters();
    product(
        *stream,
        GroupedGemm{
            .a = a_d, .b = b_d, .c = c_d, .row_offsets = offsets_d, .transpose_b = Transpose::yes});
    stream->synchronize();
    return device->counters();
  };
  const auto result = static_cast<std::uint64_t>(2 * groups.rows() * n);
  constexpr std::int64_t full = 4, of_offsets = 32;
  const auto report = [&](const std::string& kernel, const simt::Counters& counters) {
    report_counters(kernel + " of groups of rows",
                    fmt::format("{} rows in 4 groups, k {} n {}", groups.rows(), k, n), counters,
                    {.bytes = static_cast<std::uint64_t>(2 * groups.rows() * k + 2 * full * n * k +
                                                         of_offsets) +
                              result,
                     .tensor_flops = static_cast<std::uint64_t>(2 * groups.rows() * n * k)});
  };
  for (const Tile tile : {Tile::side_64, Tile::side_128}) {
    const std::int64_t side = tile == Tile::side_64 ? 64 : 128;
    SCOPED_TRACE(side);
    const simt::Counters counters =
        count(80, [&](Stream& stream, const GroupedGemm& op) { simt::run_bf16(stream, op, tile); });
    EXPECT_EQ(counters.tensor_flops,
              static_cast<std::uint64_t>(2 * groups.tiles(side) * side * n * k));
    EXPECT_EQ(counters.stores.bytes, result);
    EXPECT_EQ(counters.stores.sectors, counters.stores.ideal_sectors);
    EXPECT_EQ(counters.loads.sectors, counters.loads.ideal_sectors);
    EXPECT_EQ(counters.shared_loads.excess(), 0u);
    EXPECT_EQ(counters.shared_stores.excess(), 0u);
    report(fmt::format("gemm_sm80 tile {}", side), counters);
  }
  for (const WideTile tile : wide_tiles) {
    const std::int64_t side = columns_of(tile);
    SCOPED_TRACE(side);
    const simt::Counters counters =
        count(90, [&](Stream& stream, const GroupedGemm& op) { simt::run_sm90(stream, op, tile); });
    const std::int64_t tiles = groups.tiles(128);
    EXPECT_EQ(counters.tensor_flops, static_cast<std::uint64_t>(2 * tiles * 128 * n * k));
    EXPECT_EQ(counters.tensor_load_bytes,
              static_cast<std::uint64_t>(2 * tiles * (n / side) * (128 + side) * k));
    EXPECT_EQ(counters.tensor_store_bytes, result);
    EXPECT_EQ(counters.stores.bytes, 0u);
    EXPECT_EQ(counters.shared_loads.requests, 0u);
    EXPECT_EQ(counters.shared_stores.excess(), 0u);
    report(fmt::format("gemm_sm90 n {}", side), counters);
  }
}

// The rows are what is summed over: an empty group has no work, and none reads beyond its rows but for
// what a step of the ring takes along.
TEST(GemmTraffic, GroupsOfDepthMoveTheirTiles) {
  const Groups groups;
  constexpr std::int64_t m = 128, n = 256;
  Guarded a = random_normal(DType::bf16, {groups.rows(), m}, 1);
  Guarded b = random_normal(DType::bf16, {groups.rows(), n}, 2);
  Guarded d_b = random_normal(DType::f32, {groups.count(), m, n}, 3);
  Guarded offsets = integers({groups.count() + 1}, groups.offsets);
  const auto count = [&](int compute_capability, auto product) {
    const auto device = make_policy_device(
        {.counting = simt::Counting::on, .compute_capability = compute_capability});
    const auto stream = device->make_stream();
    OnDevice a_d(*stream, a), b_d(*stream, b), d_b_d(*stream, d_b), offsets_d(*stream, offsets);
    device->reset_counters();
    product(*stream,
            GroupedGemmWeightGradient{.a = a_d, .b = b_d, .d_b = d_b_d, .row_offsets = offsets_d});
    stream->synchronize();
    return device->counters();
  };
  constexpr std::uint64_t full = 4;  // groups with rows
  constexpr std::uint64_t sums = 4 * full * m * n, of_offsets = 32;
  const auto report = [&](const std::string& kernel, const simt::Counters& counters) {
    report_counters(
        kernel + " of groups of depth",
        fmt::format("m {} n {}, {} rows in 4 groups", m, n, groups.rows()), counters,
        {.bytes = static_cast<std::uint64_t>(2 * groups.rows() * (m + n)) + 2 * sums + of_offsets,
         .tensor_flops = static_cast<std::uint64_t>(2 * groups.rows() * m * n)});
  };
  for (const Tile tile : {Tile::side_64, Tile::side_128}) {
    const std::int64_t side = tile == Tile::side_64 ? 64 : 128;
    SCOPED_TRACE(side);
    const simt::Counters counters =
        count(80, [&](Stream& stream, const GroupedGemmWeightGradient& op) {
          simt::run_bf16(stream, op, tile);
        });
    EXPECT_EQ(counters.tensor_flops, static_cast<std::uint64_t>(2 * groups.rows() * m * n));
    EXPECT_EQ(counters.stores.bytes, sums);
    EXPECT_EQ(counters.stores.sectors, counters.stores.ideal_sectors);
    EXPECT_LE(counters.loads.sectors, counters.loads.ideal_sectors);  // zeros are no sectors
    EXPECT_EQ(counters.shared_loads.excess(), 0u);
    EXPECT_EQ(counters.shared_stores.excess(), 0u);
    report(fmt::format("gemm_sm80 tile {}", side), counters);
  }
  // Steps of 64 rows.
  const std::int64_t depth = 64 * groups.tiles(64);
  for (const WideTile tile : wide_tiles) {
    const std::int64_t side = columns_of(tile);
    SCOPED_TRACE(side);
    const simt::Counters counters =
        count(90, [&](Stream& stream, const GroupedGemmWeightGradient& op) {
          simt::run_sm90(stream, op, tile);
        });
    EXPECT_EQ(counters.tensor_flops, static_cast<std::uint64_t>(2 * depth * m * n));
    EXPECT_EQ(counters.tensor_load_bytes,
              static_cast<std::uint64_t>(2 * depth * (n / side) * (128 + side)));
    EXPECT_EQ(counters.tensor_store_bytes, sums);
    EXPECT_EQ(counters.stores.bytes, 0u);
    EXPECT_EQ(counters.shared_loads.requests, 0u);
    EXPECT_EQ(counters.shared_stores.excess(), 0u);
    report(fmt::format("gemm_sm90 n {}", side), counters);
  }
}

}  // namespace
}  // namespace orchard::testing
