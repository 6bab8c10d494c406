// The norm of a gradient and its scale on GPUs, from sm_80 on. One thread each, since the order of the
// terms is the order of the sum; it has the loads of eight in flight. Bytes: 4 or 8 a term, and 8 to 12.
// Bound: latency of L2 and of the launch.
#include <cmath>
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/gpu/gpu.h"
#include "kernels/optimizer/gradient_norm.h"
#include "kernels/optimizer/optimizer_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class Term>
__device__ double total_of(const Term* terms, std::int64_t count) {
  double total = 0;
#pragma unroll 8
  for (std::int64_t i = 0; i < count; ++i) total += load(terms + i);
  return total;
}

__global__ void __launch_bounds__(1)
    sum_in_order(const float* terms, std::int64_t count, double* sum) {
  store(sum, total_of(terms, count));
}

__global__ void __launch_bounds__(1) clip_by_norm(const double* squares, std::int64_t count,
                                                  double clip_norm, double* norm, float* scale) {
  const double value = sqrt(total_of(squares, count));
  store(norm, value);
  const double factor = clip_norm > 0 && value > clip_norm ? clip_norm / value : 1;
  const double nothing = value - value;  // NaN where the norm is not finite
  store(scale, static_cast<float>(factor + nothing));
}

// An i64 of the same bits.
const double* fp64(const ConstTensor& tensor) {
  return reinterpret_cast<const double*>(tensor.data<std::int64_t>());
}
double* fp64(const Tensor& tensor) {
  return reinterpret_cast<double*>(tensor.data<std::int64_t>());
}

}  // namespace

void register_gradient_norm(OperationTable& table) {
  table.add<SumInOrder>([](Stream& stream, const SumInOrder& op) {
    launch(stream, {.kernel = "sum_in_order"}, sum_in_order, op.terms.data<float>(),
           op.terms.numel(), fp64(op.sum));
  });
  table.add<ClipByNorm>([](Stream& stream, const ClipByNorm& op) {
    launch(stream, {.kernel = "clip_by_norm"}, clip_by_norm, fp64(op.squares), op.squares.numel(),
           op.clip_norm, fp64(op.norm), op.scale.data<float>());
  });
}

}  // namespace orchard::GPU_NAMESPACE
