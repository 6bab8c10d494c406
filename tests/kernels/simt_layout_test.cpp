// The emulator's layouts of matrices in registers and shared memory, which follow the PTX manual's
// formulas, against tables made with CuTe's algebra (tests/goldens/make_layout_golden.py).
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/mma.h"
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

// [64, 64] times [64, 128] from operands that memory holds as shared memory shall.
template <Transposed a_transposed, Transposed b_transposed>
__global__ void multiply_images(const uint4* images, float* d) {
  auto& operands = shared_storage<Operands>();
  for (unsigned i = threadIdx.x; i < sizeof(Operands) / 16; i += 128) {
    store_shared(reinterpret_cast<uint4*>(&operands) + i, load(images + i));
  }
  fence_proxy_async();
  __syncthreads();
  constexpr unsigned box_bytes = 64 * 128;
  constexpr unsigned a_step = a_transposed == Transposed::yes ? 2048 : 32;
  constexpr unsigned b_step = b_transposed == Transposed::yes ? 2048 : 32;
  float sums[64];
  wgmma_fence();
  for (unsigned k = 0; k < 4; ++k) {
    wgmma_m64k16<a_transposed, b_transposed>(
        sums, wgmma_descriptor(shared_address(operands.a) + k * a_step, box_bytes),
        wgmma_descriptor(shared_address(operands.b) + k * b_step, box_bytes), k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (unsigned i = 0; i < 64; ++i) store(d + 64 * threadIdx.x + i, sums[i]);
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::Transposed;

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

// Byte of an element, counted from the operand's first: atoms of eight lines of 128 bytes, one after
// the other along the lines, and boxes of 64 of mn.
int byte_of(Transposed transposed, int mn, int k) {
  if (transposed == Transposed::no) {
    return layout_golden::swizzle_k[mn % 8][k / 8] + k % 8 * 2 + mn / 8 * 1024;
  }
  return layout_golden::swizzle_mn[k % 8][mn / 8 % 8] + mn % 8 * 2 + k / 8 * 1024 +
         mn / 64 * (64 * 128);
}

template <Transposed a_transposed, Transposed b_transposed>
void expect_product_of_images(Stream& stream) {
  Guarded images(DType::bf16, {64 * 64 + 128 * 64}), d(DType::f32, {128, 64});
  const auto a = [](int m, int k) { return small(64 * m + k); };
  const auto b = [](int n, int k) { return small(9000 + 64 * n + k); };
  for (int k = 0; k < 64; ++k) {
    for (int m = 0; m < 64; ++m) images.set(byte_of(a_transposed, m, k) / 2, a(m, k));
    for (int n = 0; n < 128; ++n) images.set(64 * 64 + byte_of(b_transposed, n, k) / 2, b(n, k));
  }
  OnDevice images_d(stream, images), d_d(stream, d);
  simt::launch(stream, {.kernel = "k", .block = {128}, .shared_bytes = sizeof(simt::Operands)},
               simt::multiply_images<a_transposed, b_transposed>,
               static_cast<const simt::uint4*>(images_d.tensor().raw()),
               d_d.tensor().data<float>());
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
  expect_product_of_images<Transposed::no, Transposed::no>(*stream_);
  expect_product_of_images<Transposed::no, Transposed::yes>(*stream_);
  expect_product_of_images<Transposed::yes, Transposed::no>(*stream_);
  expect_product_of_images<Transposed::yes, Transposed::yes>(*stream_);
}

}  // namespace
}  // namespace orchard::testing
