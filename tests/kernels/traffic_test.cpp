// What the GPU kernels of memory-bound operations move, counted by the emulator: each operand once, in
// full sectors. Counts are exact, so they hold on every GPU whose caches keep what is small and
// shared.
#include <list>

#include "kernels/activation/activation.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/loss.h"
#include "kernels/norm/norm.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

class Traffic : public ::testing::Test {
 protected:
  // A tensor of zeros.
  Tensor tensor(DType dtype, Shape shape) {
    const auto bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
    const Tensor made = buffers_.emplace_back(*device_, bytes).tensor(dtype, shape);
    stream_->fill_zero(made);
    return made;
  }
  Tensor bf16s(Shape shape) { return tensor(DType::bf16, shape); }
  Tensor floats(Shape shape) { return tensor(DType::f32, shape); }

  template <class Operation>
  simt::Counters count(const Operation& op) {
    stream_->synchronize();
    device_->reset_counters();
    run(*stream_, op);
    stream_->synchronize();
    return device_->counters();
  }

  // `op` reads and writes these numbers of bytes, and at most this share more: partial sums,
  // statistics and what each block reads again because it is small. The caches serve most of that.
  template <class Operation>
  void expect_bytes(const Operation& op, std::size_t loaded, std::size_t stored,
                    double excess = 0.05) {
    const simt::Counters counters = count(op);
    const std::uint64_t compulsory = loaded + stored;
    const std::uint64_t moved = 32 * (counters.loads.sectors + counters.stores.sectors);
    EXPECT_GE(moved, compulsory);
    EXPECT_LE(static_cast<double>(moved), (1 + excess) * static_cast<double>(compulsory))
        << "loads " << 32 * counters.loads.sectors << " of " << loaded << ", stores "
        << 32 * counters.stores.sectors << " of " << stored;
  }

  // As above, and of all accesses none touches a sector that a packed one would not.
  template <class Operation>
  void expect_packed_bytes(const Operation& op, std::size_t loaded, std::size_t stored) {
    expect_bytes(op, loaded, stored);
    const simt::Counters counters = count(op);
    EXPECT_LE(counters.loads.sectors, counters.loads.ideal_sectors);
    EXPECT_LE(counters.stores.sectors, counters.stores.ideal_sectors);
  }

 private:
  std::unique_ptr<SimtDevice> device_ = make_policy_device({.counting = simt::Counting::on});
  std::list<Buffer> buffers_;
  std::unique_ptr<Stream> stream_ = device_->make_stream();
};

TEST_F(Traffic, OfPointwiseOperationsIsTheirOperands) {
  const Shape shape = {16, 4096};
  const std::size_t n = 16 * 4096;
  const Tensor a = bf16s(shape), b = bf16s(shape), c = bf16s(shape), d = bf16s(shape);
  const Tensor e = bf16s(shape), f = bf16s(shape), wide = floats(shape);
  expect_packed_bytes(Add{.a = a, .b = b, .y = c}, 4 * n, 2 * n);
  expect_packed_bytes(Add{.a = wide, .b = wide, .y = wide}, 8 * n, 4 * n);
  expect_packed_bytes(Convert{.x = wide, .y = a}, 4 * n, 2 * n);
  expect_packed_bytes(Convert{.x = a, .y = wide}, 2 * n, 4 * n);
  expect_packed_bytes(Scale{.x = a, .factor = 2}, 2 * n, 2 * n);
  expect_packed_bytes(ActivationForward{.kind = Activation::silu, .x = a, .y = b}, 2 * n, 2 * n);
  expect_packed_bytes(
      ActivationBackward{.kind = Activation::quick_gelu, .x = a, .d_y = b, .d_x = c}, 4 * n, 2 * n);
  expect_packed_bytes(SwiGluForward{.gate = a, .up = b, .y = c}, 4 * n, 2 * n);
  expect_packed_bytes(SwiGluBackward{.gate = a, .up = b, .d_y = c, .d_gate = d, .d_up = e, .y = f},
                      6 * n, 6 * n);
}

TEST_F(Traffic, OfSumsOverRowsIsTheRows) {
  const std::size_t n = 1024 * 1024;
  expect_bytes(ColumnSum{.x = bf16s({1024, 1024}), .y = floats({1024})}, 2 * n, 0);
  expect_packed_bytes(SumOfSquares{.x = floats({1024, 256}), .result = floats({1})}, n, 0);
}

TEST_F(Traffic, OfExcitationIsTheImages) {
  const Shape shape = {2, 512, 256};
  const std::size_t n = 2 * 512 * 256;
  const Tensor x = bf16s(shape), y = bf16s(shape), d_x = bf16s(shape), scale = bf16s({2, 256});
  expect_bytes(ExciteForward{.x = x, .scale = scale, .y = y}, 2 * n, 2 * n);
  expect_bytes(ExciteBackward{.x = x, .scale = scale, .d_y = y, .d_x = d_x, .d_scale = scale},
               4 * n, 2 * n);
}

// Of 32 rows and more for each block, so that its weight and share of the gradient count little.
TEST_F(Traffic, OfANormIsItsRows) {
  const Shape shape = {16384, 512};
  const std::size_t n = 16384 * 512;
  const Tensor x = bf16s(shape), y = bf16s(shape), d_sum = bf16s(shape), d_x = bf16s(shape);
  const Tensor weight = bf16s({512}), statistic = floats({16384}), d_weight = floats({512});
  expect_bytes(RmsNormBackward{.x = x,
                               .weight = weight,
                               .inverse_rms = statistic,
                               .d_y = y,
                               .d_sum = d_sum,
                               .d_x = d_x,
                               .d_weight = d_weight},
               6 * n, 2 * n, 0.08);
}

TEST_F(Traffic, OfCrossEntropyIsEachLogitOnceWhileARowFitsSharedMemory) {
  const std::size_t n = 4 * 16384;
  const Tensor logits = floats({4, 16384}), targets = tensor(DType::i32, {4});
  const Tensor losses = floats({4});
  expect_packed_bytes(CrossEntropy{.logits = logits, .targets = targets, .losses = losses}, 4 * n,
                      0);
  expect_packed_bytes(
      CrossEntropy{.logits = logits, .targets = targets, .losses = losses, .d_logits = logits},
      4 * n, 4 * n);
  expect_packed_bytes(
      CrossEntropy{
          .logits = logits, .targets = targets, .losses = losses, .d_logits = bf16s({4, 16384})},
      4 * n, 2 * n);
}

TEST_F(Traffic, OfOptimizersIsWhatTheirHeadersSay) {
  const Shape shape = {512, 1024};
  const std::size_t n = 512 * 1024;
  const Tensor w = floats(shape), g = floats(shape), m = floats(shape), v = floats(shape);
  const Tensor copy = bf16s(shape), row = floats({512}), col = floats({1024});
  expect_packed_bytes(AdamW{.weights = w, .gradients = g, .m = m, .v = v}, 16 * n, 12 * n);
  expect_packed_bytes(AdamW{.weights = w, .gradients = g, .m = m, .v = v, .copy = copy}, 16 * n,
                      14 * n);
  expect_bytes(AdaFactor{.weights = w, .gradients = g, .v_row = row, .v_col = col, .copy = copy},
               16 * n, 6 * n, 0.08);
  expect_bytes(AdaFactor{.weights = w, .gradients = g, .v = v}, 20 * n, 8 * n);
}

}  // namespace
}  // namespace orchard::testing
