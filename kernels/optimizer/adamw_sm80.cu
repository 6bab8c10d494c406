// AdamW on GPUs, from sm_80 on: one pass over weights, gradients and both moments. Bytes: 28 per
// element (four read, three written back), 30 with the bf16 copy; about 15 FLOPs, of them a division
// and a root. Bound: HBM bandwidth.
#include <cmath>
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/gpu/pointwise.h"
#include "kernels/optimizer/gradient_scale_gpu.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

struct AdamWUpdate {
  static constexpr int width = per_vector<float>;
  float* weights;
  const float* gradients;
  float* m;
  float* v;
  bf16* copy;                   // or nullptr
  const float* gradient_scale;  // likewise
  float beta1, rest1, beta2, rest2;
  float lr, correction2;  // lr / (1 - β1^t), 1 / (1 - β2^t)
  float epsilon, decay;   // lr · weight_decay

  template <int n>
  struct Operands {
    Values<n> w, g, m, v;
    float scale;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(weights + i), load_values<n>(gradients + i), load_values<n>(m + i),
            load_values<n>(v + i), load_scale(gradient_scale)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) const {
    if (!is_usable(in.scale)) return;
    Operands<n> out;
#pragma unroll
    for (int e = 0; e < n; ++e) {
      const float g = in.g[e] * in.scale;
      out.m[e] = fmaf(in.m[e], beta1, g * rest1);
      out.v[e] = fmaf(in.v[e], beta2, g * g * rest2);
      const float update = out.m[e] * lr / (sqrtf(out.v[e] * correction2) + epsilon);
      // One rounding of the weight's size.
      out.w[e] = in.w[e] - fmaf(in.w[e], decay, update);
    }
    store_values(m + i, out.m);
    store_values(v + i, out.v);
    store_values(weights + i, out.w);
    if (copy != nullptr) store_values(copy + i, out.w);
  }
};

void adamw(Stream& stream, const AdamW& op) {
  // In double: 1 - β^t loses half its digits in fp32 when t is small and β near one.
  const auto t = static_cast<double>(op.step);
  const double beta1 = op.beta1, beta2 = op.beta2, lr = op.lr;
  const AdamWUpdate body{
      .weights = op.weights.data<float>(),
      .gradients = op.gradients.data<float>(),
      .m = op.m.data<float>(),
      .v = op.v.data<float>(),
      .copy = op.copy.data<bf16>(),
      .gradient_scale = op.gradient_scale.data<float>(),
      .beta1 = op.beta1,
      .rest1 = static_cast<float>(1.0 - beta1),
      .beta2 = op.beta2,
      .rest2 = static_cast<float>(1.0 - beta2),
      .lr = static_cast<float>(lr / (1.0 - std::pow(beta1, t))),
      .correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, t))),
      .epsilon = op.epsilon,
      .decay = static_cast<float>(lr * op.weight_decay),
  };
  const bool vectors = all_aligned(16, {body.weights, body.gradients, body.m, body.v}) &&
                       all_aligned(8, {body.copy});
  launch_pointwise(stream, "adamw", body, {.count = op.weights.numel(), .vectors = vectors});
}

}  // namespace

void register_adamw(OperationTable& table) {
  table.add<AdamW>(adamw);
}

}  // namespace orchard::GPU_NAMESPACE
