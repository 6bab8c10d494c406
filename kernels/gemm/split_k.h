// Split-K: a product as the sum of products over slices of k.
//
// The slices' sums go to the stream's workspace, f32 [slices, m, n]; add_slices adds them in their order
// and does once what the epilogue does: bias, rounding, adding to c, the function. Bytes beyond the product's own:
// 8·slices·m·n, which L2 holds (choose_slices in gemm_gpu.h bounds it).
#pragma once

#include "kernels/device/stream.h"
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/schedule.h"

namespace orchard::GPU_NAMESPACE {

// out [m, n] <- Σ_slice sums [slices, m, n], for T = float, bf16 (split_k.cu).
template <class T>
void add_slices(Stream&, const float* sums, const DenseSchedule&, const Epilogue<T>& out);

// Calls product(c, epilogue of c, schedule), which launches the kernel, with what `slices` of k take.
template <class T, class Product>
void run_sliced(Stream& stream, const Gemm& op, int slices, const Product& product) {
  const DenseSchedule schedule = schedule_of(op, slices);
  const auto out = epilogue<T>(op.c, op.bias, op.accumulate, op.epilogue);
  const bool is_sliced = schedule.parts > 1 && schedule.k_step > 0;
  if (!is_sliced) return product(op.c, out, schedule);
  const std::int64_t count = schedule.parts * op.c.numel();
  const Tensor sums(stream.workspace(static_cast<std::size_t>(count) * sizeof(float)), DType::f32,
                    {schedule.parts, schedule.m, schedule.n}, op.c.device());
  product(sums, epilogue<T>(sums, {}, Accumulate::overwrite), schedule);
  add_slices(stream, sums.data<float>(), schedule, out);
}

}  // namespace orchard::GPU_NAMESPACE
