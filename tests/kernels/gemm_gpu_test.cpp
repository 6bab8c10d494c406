// The GPU's kernels for matrix products, beyond what gemm_test and grouped_gemm_test see of them: each
// kernel that shape would choose, at sizes that the emulator can run; and, on a GPU, sizes that choose for
// themselves.
#include "kernels/gemm/gemm_gpu.h"

#include <array>

#include "tests/kernels/device_test.h"
#include "tests/kernels/gemm_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

using simt::Tile;
using simt::WideTile;

template <Tile tile>
void run_emulated(Stream& stream, const Gemm& op) {
  simt::run_bf16(stream, op, tile);
}

GemmRunner emulated_sm90(WideTile tile) {
  return [tile](Stream& stream, const Gemm& op) { simt::run_sm90(stream, op, tile); };
}

constexpr std::array wide_tiles{WideTile::n_128, WideTile::n_256};

int columns_of(WideTile tile) {
  return tile == WideTile::n_256 ? 256 : 128;
}

// The large tile, several of it, with and without vector stores, and a depth that wraps the ring.
TEST(GemmEmulated, LargeTilesInEveryForm) {
  const auto device = make_policy_device();
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
      const auto device = make_policy_device({.order = order, .seed = 7, .completion = completion});
      const auto stream = device->make_stream();
      for (const Form& form : transposes()) {
        check_gemm(*stream, DType::bf16, DType::f32, {72, 136, 200}, form, Values::integers,
                   run_emulated<Tile::side_64>);
      }
    }
  }
}

// Several tiles for each of four persistent blocks, edges on every side, and rings that wrap.
TEST(GemmEmulated, TilesOfSm90InEveryForm) {
  using simt::AsyncCompletion;
  using simt::ThreadOrder;
  for (const auto& [completion, order] :
       {std::pair{AsyncCompletion::lazy, ThreadOrder::fifo},
        std::pair{AsyncCompletion::random, ThreadOrder::random},
        std::pair{AsyncCompletion::eager, ThreadOrder::reverse}}) {
    const auto device = make_policy_device({.order = order,
                                            .seed = 7,
                                            .completion = completion,
                                            .compute_capability = 90,
                                            .multiprocessors = 4});
    const auto stream = device->make_stream();
    for (const WideTile tile : wide_tiles) {
      SCOPED_TRACE(columns_of(tile));
      const bool wide = tile == WideTile::n_256;
      for (const Form& form : transposes()) {
        check_gemm(*stream, DType::bf16, wide ? DType::bf16 : DType::f32,
                   wide ? Size{264, 520, 264} : Size{264, 264, 392}, form, Values::integers,
                   emulated_sm90(tile));
      }
    }
  }
}

// All that the epilogue does, where a tile has one row and where it has one more than a block's, and
// columns that the copy engine does not take.
TEST(GemmEmulated, EpiloguesOfSm90) {
  const auto device = make_policy_device({.compute_capability = 90, .multiprocessors = 4});
  const auto stream = device->make_stream();
  for (const WideTile tile : wide_tiles) {
    SCOPED_TRACE(columns_of(tile));
    for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
      for (const bool bias : {false, true}) {
        for (const DType out : {DType::bf16, DType::f32}) {
          for (const Size& size :
               {Size{1, 8, 8}, Size{129, 264, 72}, Size{17, 12, 64}, Size{65, 131, 64}}) {
            check_gemm(*stream, DType::bf16, out, size,
                       {Transpose::no, Transpose::yes, accumulate, bias},
                       size.k == 72 ? Values::normal : Values::integers, emulated_sm90(tile));
          }
        }
      }
    }
  }
}

// How many slices a test asks for, and a k that they do not divide: 64 is the least slice.
struct Cut {
  std::int64_t k;
  int slices;
};

std::vector<Cut> cuts() {
  return {{64, 4}, {65, 2}, {72, 3}, {200, 2}, {200, 3}, {448, 3}, {1000, 16}};
}

// Slices that do not divide k, more of them than k has, all that the second launch must do.
TEST(GemmEmulated, SlicesOfKAddUp) {
  using simt::AsyncCompletion;
  using simt::ThreadOrder;
  const auto device = make_policy_device({.order = ThreadOrder::random,
                                          .seed = 7,
                                          .completion = AsyncCompletion::lazy,
                                          .compute_capability = 90});
  const auto stream = device->make_stream();
  for (const auto& [k, slices] : cuts()) {
    SCOPED_TRACE(fmt::format("{} slices", slices));
    const auto sm80 = [slices = slices](Stream& s, const Gemm& op) {
      simt::run_bf16(s, op, Tile::side_64, slices);
    };
    const auto sm90 = [slices = slices](Stream& s, const Gemm& op) {
      simt::run_sm90(s, op, WideTile::n_128, slices);
    };
    for (Form form : transposes()) {
      check_gemm(*stream, DType::bf16, DType::f32, {72, 40, k}, form, Values::integers, sm80);
      // Rows that begin on 16 bytes, as sm_90a's kernel needs them.
      const std::int64_t aligned = (k + 7) / 8 * 8;
      check_gemm(*stream, DType::bf16, DType::f32, {72, 136, aligned}, form, Values::integers,
                 sm90);
      form.accumulate = Accumulate::add;
      form.bias = true;
      check_gemm(*stream, DType::bf16, DType::bf16, {33, 67, k}, form, Values::integers, sm80);
      check_gemm(*stream, DType::bf16, DType::f32, {33, 67, k}, form, Values::normal, sm80);
      check_gemm(*stream, DType::bf16, DType::bf16, {72, 136, aligned}, form, Values::normal, sm90);
    }
  }
}

// Several tiles a slice on few SMs, with all that the second launch must do, where the copy engine takes
// the sums and where it does not.
TEST(GemmEmulated, SlicesOfManyTilesOfSm90) {
  const auto device = make_policy_device({.order = simt::ThreadOrder::random,
                                          .seed = 7,
                                          .completion = simt::AsyncCompletion::random,
                                          .compute_capability = 90,
                                          .multiprocessors = 4});
  const auto stream = device->make_stream();
  for (const WideTile tile : wide_tiles) {
    SCOPED_TRACE(columns_of(tile));
    const auto product = [&](Stream& s, const Gemm& op) { simt::run_sm90(s, op, tile, 3); };
    check_gemm(*stream, DType::bf16, DType::bf16, {264, 262, 200}, {Transpose::no, Transpose::yes},
               Values::integers, product);
    check_gemm(*stream, DType::bf16, DType::f32, {264, 136, 200},
               {Transpose::yes, Transpose::no, Accumulate::add, true}, Values::integers, product);
  }
}

// The sums of slices are rounded once, to f32, before they are added: bit-equal for each run, and not
// the bits of one sum, or there was but one slice.
TEST(GemmEmulated, SlicesAreSummedSeparately) {
  const auto device = make_policy_device();
  const auto stream = device->make_stream();
  Guarded a = random_normal(DType::bf16, {64, 1024}, 1),
          b = random_normal(DType::bf16, {1024, 64}, 2);
  const auto product = [&](int slices) {
    Guarded c(DType::f32, {64, 64});
    OnDevice a_d(*stream, a), b_d(*stream, b), c_d(*stream, c);
    simt::run_bf16(*stream, Gemm{.a = a_d, .b = b_d, .c = c_d}, Tile::side_64, slices);
    c_d.download();
    stream->synchronize();
    return c;
  };
  const Guarded whole = product(1), cut = product(4);
  EXPECT_FALSE(cut == whole);
  expect_close(cut, whole.values(), 2 * gemm_bound(1024, DType::f32), "c");
}

// The f32 kernel's tiles, in every form, on a GPU large enough to cut k and on one too small.
TEST(GemmEmulated, TilesOfF32InEveryForm) {
  for (const int multiprocessors : {1, 9}) {
    const auto device = make_policy_device(
        {.order = simt::ThreadOrder::random, .seed = 7, .multiprocessors = multiprocessors});
    const auto stream = device->make_stream();
    for (const Form& form : every_form()) {
      for (const Size& size : {Size{133, 8, 70}, Size{8, 133, 700}, Size{16, 16, 333},
                               Size{17, 17, 333}, Size{129, 1, 33}, Size{1, 129, 257}}) {
        check_gemm(*stream, DType::f32, DType::f32, size, form, Values::integers);
      }
    }
  }
}

// On an H100, 132 SMs.
TEST(GemmChoice, CutsWhatLeavesSMsIdle) {
  const simt::Blocks sm90{132, simt::tensor_core_overhead};
  EXPECT_EQ(simt::choose_slices(16, 32768, sm90), 8);  // [512, 512], rows of a step
  EXPECT_EQ(simt::choose_slices(48, 32768, sm90), 5);  // two rounds of a fifth
  EXPECT_EQ(simt::choose_slices(16, 1024, sm90), 1);   // too short
  EXPECT_EQ(simt::choose_slices(132, 32768, sm90), 1);
  EXPECT_EQ(simt::choose_slices(1280, 8192, sm90), 1);
  EXPECT_EQ(simt::choose_slices(0, 32768, sm90), 1);
  EXPECT_EQ(simt::choose_slices(16, 0, sm90), 1);
  const simt::Blocks narrow{264, simt::ffma_overhead};
  EXPECT_EQ(simt::choose_slices(4, 32768, narrow), 66);  // a router's weight gradient
  EXPECT_EQ(simt::choose_slices(256, 512, narrow), 1);   // its logits
  for (const std::int64_t tiles : {1, 3, 7, 40, 131}) {
    const int slices = simt::choose_slices(tiles, 1 << 20, sm90);
    EXPECT_LE(tiles * slices, 2 * 132) << "the workspace is not bounded";
  }
}

// Tiles of sm_90a on an H100.
TEST(GemmChoice, TakesTheTileThatIsDoneSooner) {
  // 10 rounds of 256 columns against 20 of 128; 3 against 5; a part of one; in slices.
  EXPECT_EQ(simt::choose_wide_tile(64, 5120, 3072, 132), WideTile::n_256);
  EXPECT_EQ(simt::choose_wide_tile(64, 1280, 5120, 132), WideTile::n_128);
  EXPECT_EQ(simt::choose_wide_tile(8, 1024, 1024, 132), WideTile::n_128);
  EXPECT_EQ(simt::choose_wide_tile(4, 512, 32768, 132), WideTile::n_128);
}

// Products of many large tiles, with every kernel that this GPU has. A device reads its kernel when it
// computes its first product of bf16, here an empty one.
TEST(GemmOnGpu, LargeProductsWithEveryKernel) {
  struct Forced {
    std::string kernel;
    std::unique_ptr<Device> device;
    std::unique_ptr<Stream> stream;
  };
  std::vector<Forced> all;
  for (const char* kernel : {"auto", "sm80_64", "sm80_128", "sm90_128", "sm90_256"}) {
    const Environment environment("ORCHARD_GPU_GEMM", kernel);
    FoundDevice found = find_device(DeviceKind::cuda);
    if (!found.device) GTEST_SKIP() << found.absence;
    auto stream = found.device->make_stream();
    check_gemm(*stream, DType::bf16, DType::bf16, {0, 0, 0}, {});
    all.push_back({kernel, std::move(found.device), std::move(stream)});
  }
  const auto check = [&](DType out, const Size& size, const Form& form, Values values) {
    GemmProblem problem(DType::bf16, out, size, form, values);
    for (const Forced& forced : all) {
      SCOPED_TRACE(forced.kernel);
      problem.check(*forced.stream, run_as_users_do);
    }
  };
  for (const Form& form : transposes()) {
    for (const DType out : {DType::bf16, DType::f32}) {
      check(out, {1408, 1320, 264}, form, Values::normal);
      check(out, {776, 1336, 1032}, {form.transpose_a, form.transpose_b, Accumulate::add, true},
            Values::integers);
    }
    check(DType::bf16, {700, 711, 97}, form, Values::normal);
    // A round and a bit on 132 SMs; and few tiles, so slices of a k that is long.
    check(DType::f32, {1160, 2048, 1032}, {form.transpose_a, form.transpose_b, Accumulate::add},
          Values::integers);
    check(DType::f32, {264, 392, 4200}, {form.transpose_a, form.transpose_b, Accumulate::add},
          Values::integers);
  }
}

TEST(GemmErrors, AnUnknownKernelIsRefused) {
  const Environment environment("ORCHARD_GPU_GEMM", "sm70");
  const auto device = make_policy_device();
  const auto stream = device->make_stream();
  try {
    check_gemm(*stream, DType::bf16, DType::f32, {8, 8, 8}, {});
    FAIL() << "a kernel that does not exist was accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "ORCHARD_GPU_GEMM is sm70; it may be auto, sm80_64, sm80_128, sm90_128, sm90_256 "
                 "or cublaslt");
  }
}

}  // namespace
}  // namespace orchard::testing
