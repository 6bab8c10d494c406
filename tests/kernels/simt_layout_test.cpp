// The emulator's layouts of matrices in registers and shared memory, which follow the PTX manual's
// formulas, against tables made with CuTe's algebra (tests/goldens/make_layout_golden.py).
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/mma.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"
#include "tests/goldens/layout_golden.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::simt {
namespace {

// One value of each lane: registers go in and out through memory, in the order of lanes.
__global__ void multiply_fragments(const bf16* a, const bf16* b, float* d) {
  const unsigned lane = threadIdx.x;
  const auto pair = [](const bf16* values) {
    return static_cast<unsigned>(load(values).bits) | load(values + 1).bits << 16;
  };
  unsigned left[4];
  for (unsigned r = 0; r < 4; ++r) left[r] = pair(a + 8 * lane + 2 * r);
  float sums[4] = {};
  mma_m16n8k16_bf16(sums, left, pair(b + 4 * lane), pair(b + 4 * lane + 2));
  for (unsigned i = 0; i < 4; ++i) store(d + 4 * lane + i, sums[i]);
}

struct Rows {
  alignas(16) std::uint16_t element[32][8];
};

template <bool transposed>
__global__ void load_fragments(int* out) {
  auto& rows = shared_storage<Rows>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = 0; i < 8; ++i) {
    rows.element[lane][i] = static_cast<std::uint16_t>(8 * lane + i);
  }
  __syncwarp();
  unsigned registers[4];
  if (transposed) {
    ldmatrix_trans(registers, rows.element[lane]);
  } else {
    ldmatrix(registers, rows.element[lane]);
  }
  for (unsigned v = 0; v < 8; ++v) {
    store(out + 8 * lane + v, static_cast<int>(registers[v / 2] >> (16 * (v % 2)) & 0xffff));
  }
}

struct Operands {
  alignas(1024) bf16 a[64 * 64];
  alignas(1024) bf16 b[128 * 64];
};

// An operand's layout, and where in it each 16 of k begin.
struct Image {
  OperandLayout layout;
  unsigned step[4];
};

// [64, 64] times [64, 128] from operands that memory holds as shared memory shall.
template <Transposed a_transposed, Transposed b_transposed>
__global__ void multiply_images(const uint4* images, Image a, Image b, float* d) {
  auto& operands = shared_storage<Operands>();
  for (unsigned i = threadIdx.x; i < sizeof(Operands) / 16; i += 128) {
    store_shared(reinterpret_cast<uint4*>(&operands) + i, load(images + i));
  }
  fence_proxy_async();
  __syncthreads();
  float sums[64];
  wgmma_fence();
  for (unsigned k = 0; k < 4; ++k) {
    wgmma_m64k16<a_transposed, b_transposed>(
        sums, wgmma_descriptor(shared_address(operands.a) + a.step[k], a.layout),
        wgmma_descriptor(shared_address(operands.b) + b.step[k], b.layout), k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (unsigned i = 0; i < 64; ++i) store(d + 64 * threadIdx.x + i, sums[i]);
}

struct Box {
  alignas(1024) std::uint16_t element[16 * 64];
  std::uint64_t full;
};

// What the copy engine makes of a box, as shared memory holds it.
__global__ void load_box(const __grid_constant__ TensorMap map, int* out) {
  auto& box = shared_storage<Box>();
  const auto bytes = static_cast<unsigned>(map.box.box_bytes());
  if (threadIdx.x != 0) return;
  mbarrier_init(&box.full, 1);
  mbarrier_fence_init();
  mbarrier_arrive_expect(&box.full, bytes);
  tma_load(box.element, map, 0, 0, 0, &box.full);
  mbarrier_wait(&box.full, 0);
  for (unsigned i = 0; i < bytes / 2; ++i) store(out + i, load_shared(box.element + i));
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::Transposed;

constexpr Swizzle swizzles[] = {Swizzle::none, Swizzle::bytes_32, Swizzle::bytes_64,
                                Swizzle::bytes_128};

// Integers small enough that every sum is exact.
int small(int i) {
  return static_cast<int>(static_cast<unsigned>(i) * 2654435761u >> 28) - 8;
}

class Layouts : public ::testing::Test {
 protected:
  template <class... Parameters, class... Arguments>
  void run(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
    simt::launch(*stream_, shape, kernel, arguments...);
  }
  const std::unique_ptr<SimtDevice> device_ = make_policy_device({.compute_capability = 90});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();
};

TEST_F(Layouts, OfMmaAreThoseOfCute) {
  Guarded a(DType::bf16, {32, 8}), b(DType::bf16, {32, 4}), d(DType::f32, {32, 4});
  for (int lane = 0; lane < 32; ++lane) {
    for (int v = 0; v < 8; ++v) a.set(8 * lane + v, small(layout_golden::mma_a[lane][v]));
    for (int v = 0; v < 4; ++v) b.set(4 * lane + v, small(500 + layout_golden::mma_b[lane][v]));
  }
  OnDevice a_d(*stream_, a), b_d(*stream_, b), d_d(*stream_, d);
  run({.kernel = "k", .block = {32}}, simt::multiply_fragments, a_d.tensor().data<bf16>(),
      b_d.tensor().data<bf16>(), d_d.tensor().data<float>());
  d_d.download();
  stream_->synchronize();
  for (int lane = 0; lane < 32; ++lane) {
    for (int v = 0; v < 4; ++v) {
      const int m = layout_golden::mma_c[lane][v] % 16, n = layout_golden::mma_c[lane][v] / 16;
      int expected = 0;
      for (int k = 0; k < 16; ++k) expected += small(m + 16 * k) * small(500 + n + 8 * k);
      EXPECT_EQ(d.at(4 * lane + v), expected) << lane << ", " << v;
    }
  }
}

TEST_F(Layouts, OfLdmatrixAreThoseOfCute) {
  for (const bool transposed : {false, true}) {
    Guarded out(DType::i32, {32, 8});
    OnDevice out_d(*stream_, out);
    run({.kernel = "k", .block = {32}, .shared_bytes = sizeof(simt::Rows)},
        transposed ? simt::load_fragments<true> : simt::load_fragments<false>,
        out_d.tensor().data<int>());
    out_d.download();
    stream_->synchronize();
    const auto& golden = transposed ? layout_golden::ldmatrix_trans : layout_golden::ldmatrix;
    for (int lane = 0; lane < 32; ++lane) {
      for (int v = 0; v < 8; ++v) EXPECT_EQ(out.at(8 * lane + v), golden[lane][v]);
    }
  }
}

// A way to keep an operand [mn, 64 (k)]: its tables of 1024 bytes follow each other along mn first.
struct Kept {
  Transposed transposed;
  int swizzle;  // of `swizzles`
  int count;    // of mn

  // Of an element, counted from the operand's first.
  int byte_of(int mn, int k) const {
    if (transposed == Transposed::no) {
      return layout_golden::operand_k[8 * swizzle + mn % 8][k / 8] + k % 8 * 2 + mn / 8 * 1024;
    }
    return layout_golden::operand_mn[8 * swizzle + k % 8][mn / 8 % 8] + mn % 8 * 2 +
           (k / 8 * (count / 64) + mn / 64) * 1024;
  }

  simt::Image image() const {
    const bool is_mn = transposed == Transposed::yes;
    const unsigned atom = 128u << swizzle;  // bytes: eight lines
    const unsigned eight_k = is_mn ? static_cast<unsigned>(count / 64) * 1024 : atom;
    const unsigned next_line = is_mn ? atom : 16;  // k has no use for it
    simt::Image out{{swizzles[swizzle], next_line, is_mn ? eight_k : 1024}, {}};
    if (swizzle == 0) out.layout = {Swizzle::none, eight_k, is_mn ? atom : 1024};
    // Each 16 of k begin where the table has their first line.
    for (int k = 0; k < 4; ++k) out.step[k] = static_cast<unsigned>(byte_of(0, 16 * k));
    return out;
  }
};

template <Transposed a_transposed, Transposed b_transposed>
void expect_product_of_images(Stream& stream, int a_swizzle, int b_swizzle) {
  SCOPED_TRACE(fmt::format("transposed {} {}, swizzles {} {}", static_cast<int>(a_transposed),
                           static_cast<int>(b_transposed), a_swizzle, b_swizzle));
  const Kept a_kept{a_transposed, a_swizzle, 64}, b_kept{b_transposed, b_swizzle, 128};
  Guarded images(DType::bf16, {64 * 64 + 128 * 64}), d(DType::f32, {128, 64});
  const auto a = [](int m, int k) { return small(64 * m + k); };
  const auto b = [](int n, int k) { return small(9000 + 64 * n + k); };
  for (int k = 0; k < 64; ++k) {
    for (int m = 0; m < 64; ++m) images.set(a_kept.byte_of(m, k) / 2, a(m, k));
    for (int n = 0; n < 128; ++n) images.set(64 * 64 + b_kept.byte_of(n, k) / 2, b(n, k));
  }
  OnDevice images_d(stream, images), d_d(stream, d);
  simt::launch(stream, {.kernel = "k", .block = {128}, .shared_bytes = sizeof(simt::Operands)},
               simt::multiply_images<a_transposed, b_transposed>,
               static_cast<const simt::uint4*>(images_d.tensor().raw()), a_kept.image(),
               b_kept.image(), d_d.tensor().data<float>());
  d_d.download();
  stream.synchronize();
  int wrong = 0;
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 64; ++i) {
      // The table's 16 columns are 8 values, and so on.
      const int place = layout_golden::wgmma_c[thread][i % 8];
      const int m = place % 64, n = place / 64 + i / 8 * 16;
      int expected = 0;
      for (int k = 0; k < 64; ++k) expected += a(m, k) * b(n, k);
      wrong += d.at(64 * thread + i) != expected;
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_F(Layouts, OfWgmmaAreThoseOfCute) {
  for (int s = 0; s < 4; ++s) {
    EXPECT_EQ(simt::wgmma_descriptor(0, {swizzles[s], 0, 0}) >> 62,
              layout_golden::descriptor_swizzle[s][0]);
  }
  for (int a = 0; a < 4; ++a) {
    for (int b = 0; b < 4; ++b) {
      expect_product_of_images<Transposed::no, Transposed::no>(*stream_, a, b);
      expect_product_of_images<Transposed::no, Transposed::yes>(*stream_, a, b);
      expect_product_of_images<Transposed::yes, Transposed::no>(*stream_, a, b);
      expect_product_of_images<Transposed::yes, Transposed::yes>(*stream_, a, b);
    }
  }
}

// A box whose rows have the swizzle's bytes is an operand of wgmma with its k contiguous.
TEST_F(Layouts, OfBoxesAreThoseOfCute) {
  constexpr int rows = 16;
  for (int s = 0; s < 4; ++s) {
    const int cols = 8 << s;
    Guarded in(DType::bf16, {rows, cols}), out(DType::i32, {rows, cols});
    for (int i = 0; i < in.size(); ++i) in.set(i, i);
    OnDevice in_d(*stream_, in), out_d(*stream_, out);
    run({.kernel = "k", .block = {32}, .shared_bytes = sizeof(simt::Box)}, simt::load_box,
        simt::make_tensor_map(
            {in_d.tensor().raw(), cols, rows, 1, cols, rows, DType::bf16, swizzles[s]}),
        out_d.tensor().data<int>());
    out_d.download();
    stream_->synchronize();
    for (int row = 0; row < rows; ++row) {
      for (int col = 0; col < cols; ++col) {
        const int byte =
            layout_golden::operand_k[8 * s + row % 8][col / 8] + col % 8 * 2 + row / 8 * (128 << s);
        ASSERT_EQ(out.at(byte / 2), to_bf16(static_cast<float>(row * cols + col)).bits)
            << "swizzle " << s << ", [" << row << ", " << col << "]";
      }
    }
  }
}

}  // namespace
}  // namespace orchard::testing
