// The GPU's kernels for matrix products, beyond what gemm_test and grouped_gemm_test see of them: each
// kernel that shape would choose, at sizes that the emulator can run; what they move; and, on a GPU,
// sizes that choose for themselves.
#include "kernels/gemm/gemm_gpu.h"

#include "tests/kernels/device_test.h"
#include "tests/kernels/gemm_test.h"

namespace orchard::testing {
namespace {

using simt::Tile;
using simt::WideTile;

template <Tile tile>
void run_emulated(Stream& stream, const Gemm& op) {
  simt::run_bf16(stream, op, tile);
}

template <WideTile tile>
void run_emulated_sm90(Stream& stream, const Gemm& op) {
  simt::run_sm90(stream, op, tile);
}

// The large tile, several of it, with and without vector stores, and a depth that wraps the ring.
TEST(GemmEmulated, LargeTilesInEveryForm) {
  const auto device = make_simt_device();
  const auto stream = device->make_stream();
  for (const Form& form : transposes()) {
    check_gemm(*stream, DType::bf16, DType::bf16, {136, 152, 168}, form, Values::normal,
               run_emulated<Tile::side_128>);
  }
  for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
    check_gemm(*stream, DType::bf16, DType::f32, {129, 127, 104},
               {Transpose::no, Transpose::yes, accumulate, true}, Values::normal,
               run_emulated<Tile::side_128>);
    check_gemm(*stream, DType::bf16, DType::f32, {120, 256, 64},
               {Transpose::yes, Transpose::no, accumulate}, Values::integers,
               run_emulated<Tile::side_128>);
  }
}

TEST(GemmEmulated, ResultsDependOnNoOrderAndNoCompletion) {
  for (const auto completion : {simt::AsyncCompletion::eager, simt::AsyncCompletion::lazy}) {
    for (const auto order :
         {simt::ThreadOrder::fifo, simt::ThreadOrder::reverse, simt::ThreadOrder::random}) {
      const auto device = make_simt_device({.order = order, .seed = 7, .completion = completion});
      const auto stream = device->make_stream();
      for (const Form& form : transposes()) {
        check_gemm(*stream, DType::bf16, DType::f32, {72, 136, 200}, form, Values::integers,
                   run_emulated<Tile::side_64>);
      }
    }
  }
}

// Several tiles for each of two persistent blocks, edges on every side, and rings that wrap.
TEST(GemmEmulated, TilesOfSm90InEveryForm) {
  using simt::AsyncCompletion;
  using simt::ThreadOrder;
  for (const auto& [completion, order] :
       {std::pair{AsyncCompletion::lazy, ThreadOrder::fifo},
        std::pair{AsyncCompletion::lazy, ThreadOrder::random},
        std::pair{AsyncCompletion::eager, ThreadOrder::reverse}}) {
    const auto device = make_simt_device(
        {.order = order, .seed = 7, .completion = completion, .compute_capability = 90});
    const auto stream = device->make_stream();
    for (const Form& form : transposes()) {
      check_gemm(*stream, DType::bf16, DType::bf16, {136, 264, 264}, form, Values::integers,
                 run_emulated_sm90<WideTile::n_256>);
      check_gemm(*stream, DType::bf16, DType::f32, {136, 136, 456}, form, Values::integers,
                 run_emulated_sm90<WideTile::n_128>);
    }
  }
  const auto device = make_simt_device({.compute_capability = 90});
  const auto stream = device->make_stream();
  for (const Form& form : transposes()) {
    check_gemm(*stream, DType::bf16, DType::f32, {8, 16, 8},
               {form.transpose_a, form.transpose_b, Accumulate::add, true}, Values::normal,
               run_emulated_sm90<WideTile::n_128>);
  }
}

// What the kernels move, exactly: no bank conflicts, whole sectors, no tensor work but the tiles'.
TEST(GemmEmulated, MovesWhatItMust) {
  const auto device = make_simt_device({.counting = simt::Counting::on});
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
      }
    }
  }
}

// Products of many large tiles, with every kernel that this GPU has.
TEST(GemmOnGpu, LargeProductsWithEveryKernel) {
  for (const char* const kernel : {"auto", "sm80_64", "sm80_128", "sm90_128", "sm90_256"}) {
    SCOPED_TRACE(kernel);
    const Environment environment("ORCHARD_GPU_GEMM", kernel);
    const FoundDevice found = find_device(DeviceKind::cuda);
    if (!found.device) GTEST_SKIP() << found.absence;
    const auto stream = found.device->make_stream();
    for (const Form& form : transposes()) {
      for (const DType out : {DType::bf16, DType::f32}) {
        check_gemm(*stream, DType::bf16, out, {1408, 1320, 264}, form);
        check_gemm(*stream, DType::bf16, out, {776, 1336, 1032},
                   {form.transpose_a, form.transpose_b, Accumulate::add, true}, Values::integers);
      }
      check_gemm(*stream, DType::bf16, DType::bf16, {700, 711, 97}, form);
    }
  }
}

TEST(GemmErrors, AnUnknownKernelIsRefused) {
  const Environment environment("ORCHARD_GPU_GEMM", "sm70");
  const auto device = make_simt_device();
  const auto stream = device->make_stream();
  try {
    check_gemm(*stream, DType::bf16, DType::f32, {8, 8, 8}, {});
    FAIL() << "a kernel that does not exist was accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "ORCHARD_GPU_GEMM is sm70; it may be auto, sm80_64, sm80_128, sm90_128 or sm90_256");
  }
}

}  // namespace
}  // namespace orchard::testing
