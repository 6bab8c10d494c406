// The example of docs/simt.md: a kernel of one's own on the emulator.
#include "kernels/gpu/gpu.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"

namespace orchard::GPU_NAMESPACE {

__global__ void scale(const float* in, float* out, int n, float factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) store(out + i, factor * load(in + i));
}

}  // namespace orchard::GPU_NAMESPACE

namespace orchard {

TEST(Scale, Doubles) {
  const auto device = make_simt_device({.counting = simt::Counting::on});
  const auto stream = device->make_stream();
  testing::Guarded values = testing::random_normal(DType::f32, {1000}, 1), result = values;
  const Buffer in = device->allocate(4000), out = device->allocate(4000);
  const Tensor x = in.tensor(DType::f32, {1000}), y = out.tensor(DType::f32, {1000});

  stream->copy(x, values);
  simt::launch(*stream, {.kernel = "scale", .grid = {4}, .block = {256}}, simt::scale,
               x.data<float>(), y.data<float>(), 1000, 2.0f);
  stream->copy(result, y);
  stream->synchronize();  // all three run here

  EXPECT_EQ(result.at(999), 2 * values.at(999));
  EXPECT_EQ(device->counters().loads.sectors_per_request(), 125.0 / 32);  // 1000 floats, 32 warps
}

}  // namespace orchard
