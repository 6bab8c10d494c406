// RMSNorm on the CPU. Forward reads each row once from memory (the second pass finds it in the L1
// cache); backward likewise. Bound by memory bandwidth for rows longer than a few vectors.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/rms_norm_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cmath>

#include "kernels/core/visit.h"
#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/reduction.h"
#include "kernels/device/device.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

template <class T>
void forward_rows(const RmsNormForward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = op.x.dim(1);
  const T* const weight = op.weight.data<T>();
  for (std::int64_t row = begin; row < end; ++row) {
    T* const y = row_of<T>(op.y, row, cols);
    const InputRow<T> x = read_row<T>(
        op, row, [&](Vector v, Vector total) HWY_ATTR { return hn::MulAdd(v, v, total); });
    const float inverse_rms = 1.0f / std::sqrt(x.total / static_cast<float>(cols) + op.epsilon);
    op.inverse_rms.data<float>()[row] = inverse_rms;
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Mul(hn::Mul(load(x.data + i, n), set(inverse_rms)), load(weight + i, n)), y + i, n);
    });
  }
}

// With x̂ = x·r (r the inverse rms) and g = d_y·w:
//   d_x = r·(g - x̂·mean(g·x̂)) + d_sum,  d_w = Σ_rows d_y·x̂.
template <class T>
void backward_rows(const RmsNormBackward& op, std::int64_t begin, std::int64_t end,
                   float* d_weight) {
  for (std::int64_t index = begin; index < end; ++index) {
    const GradientRow<T> row = gradient_row<T>(op, index);
    const Vector r = set(op.inverse_rms.data<float>()[index]);
    const auto normalised = [&](std::int64_t i, std::int64_t n)
                                HWY_ATTR { return hn::Mul(load(row.x + i, n), r); };
    const float dot =
        sum_vectors(row.cols, [&](std::int64_t i, std::int64_t n, Vector total) HWY_ATTR {
          const Vector x = normalised(i, n), d_y = load(row.d_y + i, n);
          if (d_weight) store(hn::MulAdd(d_y, x, load(d_weight + i, n)), d_weight + i, n);
          return hn::MulAdd(hn::Mul(d_y, load(row.weight + i, n)), x, total);
        });
    write_d_x(row, r, zero(), set(dot / static_cast<float>(row.cols)), normalised);
  }
}

void rms_norm_forward(Stream&, const RmsNormForward& op) {
  parallel_for(op.x.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
    visit_float(op.x.dtype(), [&]<class T>(T) { forward_rows<T>(op, begin, end); });
  });
}

void rms_norm_backward(Stream& stream, const RmsNormBackward& op) {
  sum_over_rows(
      stream, op.x.dim(0), op.d_weight, [&](std::int64_t begin, std::int64_t end, float* partial) {
        visit_float(op.x.dtype(), [&]<class T>(T) { backward_rows<T>(op, begin, end, partial); });
      });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(rms_norm_forward);
HWY_EXPORT(rms_norm_backward);

void register_rms_norm(OperationTable& table) {
  table.add<RmsNormForward>([](Stream& s, const RmsNormForward& op) {
    HWY_DYNAMIC_DISPATCH(rms_norm_forward)(s, op);
  });
  table.add<RmsNormBackward>([](Stream& s, const RmsNormBackward& op) {
    HWY_DYNAMIC_DISPATCH(rms_norm_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
