// RMSNorm on the CPU. Forward reads each row once from memory (the second pass finds it in the L1
// cache); backward likewise. Bound by memory bandwidth for rows longer than a few vectors.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/rms_norm_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/reduction.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"
#include "kernels/norm/norm.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

template <class T>
void forward_rows(const RmsNormForward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = op.x.dim(1);
  const T* const weight = op.weight.data<T>();
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = op.x.data<T>() + row * cols;
    const T* const delta = op.delta ? op.delta.data<T>() + row * cols : nullptr;
    T* const sum_row = op.sum ? op.sum.data<T>() + row * cols : nullptr;
    T* const y = op.y.data<T>() + row * cols;
    Vector squares = zero();
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      Vector v = load(x + i, n);
      if (delta) {
        store(hn::Add(v, load(delta + i, n)), sum_row + i, n);
        v = load(sum_row + i, n);  // as stored: backward sees the rounded sum
      }
      squares = hn::MulAdd(v, v, squares);
    });
    if (delta) x = sum_row;
    const float inverse_rms =
        1.0f / std::sqrt(sum(squares) / static_cast<float>(cols) + op.epsilon);
    op.inverse_rms.data<float>()[row] = inverse_rms;
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Mul(hn::Mul(load(x + i, n), set(inverse_rms)), load(weight + i, n)), y + i, n);
    });
  }
}

// With x̂ = x·r (r the inverse rms) and g = d_y·w:  d_x = r·(g - x̂·mean(g·x̂)) + d_sum,  d_w = Σ_rows
// d_y·x̂.
template <class T>
void backward_rows(const RmsNormBackward& op, std::int64_t begin, std::int64_t end,
                   float* d_weight) {
  const std::int64_t cols = op.x.dim(1);
  const T* const weight = op.weight.data<T>();
  for (std::int64_t row = begin; row < end; ++row) {
    const T* const x = op.x.data<T>() + row * cols;
    const T* const d_y = op.d_y.data<T>() + row * cols;
    const T* const d_sum = op.d_sum ? op.d_sum.data<T>() + row * cols : nullptr;
    T* const d_x = op.d_x.data<T>() + row * cols;
    const Vector r = set(op.inverse_rms.data<float>()[row]);
    Vector dot = zero();
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector normalised = hn::Mul(load(x + i, n), r);
      const Vector gradient = load(d_y + i, n);
      dot = hn::MulAdd(hn::Mul(gradient, load(weight + i, n)), normalised, dot);
      if (d_weight) store(hn::MulAdd(gradient, normalised, load(d_weight + i, n)), d_weight + i, n);
    });
    const Vector mean = set(sum(dot) / static_cast<float>(cols));
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector normalised = hn::Mul(load(x + i, n), r);
      const Vector g = hn::Mul(load(d_y + i, n), load(weight + i, n));
      Vector out = hn::Mul(r, hn::NegMulAdd(normalised, mean, g));
      if (d_sum) out = hn::Add(out, load(d_sum + i, n));
      store(out, d_x + i, n);
    });
  }
}

void rms_norm_forward(Stream&, const RmsNormForward& op) {
  const auto rows_of = op.x.dtype() == DType::f32 ? forward_rows<float> : forward_rows<bf16>;
  parallel_for(op.x.dim(0), 16,
               [&](std::int64_t begin, std::int64_t end) { rows_of(op, begin, end); });
}

void rms_norm_backward(Stream& stream, const RmsNormBackward& op) {
  const auto rows_of = op.x.dtype() == DType::f32 ? backward_rows<float> : backward_rows<bf16>;
  sum_over_rows(stream, op.x.dim(0), op.d_weight,
                [&](std::int64_t begin, std::int64_t end, float* partial) {
                  rows_of(op, begin, end, partial);
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
