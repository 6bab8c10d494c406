// LayerNorm on the CPU. Forward makes three passes over a row (mean, variance about it, output) and
// backward two, of which only the first reaches memory: rows stay in the L1 cache. Bound by memory
// bandwidth for rows longer than a few vectors; about 8 FLOPs an element forward, 14 backward.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/layer_norm_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cmath>

#include "kernels/core/visit.h"
#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/reduction.h"
#include "kernels/device/device.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_cpu.h"
#include "kernels/norm/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

template <class T>
void forward_rows(const LayerNormForward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = op.x.dim(1);
  const T* const weight = op.weight.data<T>();
  const T* const bias = op.bias.data<T>();
  for (std::int64_t row = begin; row < end; ++row) {
    T* const y = row_of<T>(op.y, row, cols);
    const InputRow<T> x =
        read_row<T>(op, row, [&](Vector v, Vector so_far) HWY_ATTR { return hn::Add(so_far, v); });
    const float mean = x.total / static_cast<float>(cols);
    const float squares =
        sum_vectors(cols, [&](std::int64_t i, std::int64_t n, Vector so_far) HWY_ATTR {
          const Vector v = first_lanes(hn::Sub(load(x.data + i, n), set(mean)), n);
          return hn::MulAdd(v, v, so_far);
        });
    const float inverse_std = 1.0f / std::sqrt(squares / static_cast<float>(cols) + op.epsilon);
    op.mean.data<float>()[row] = mean;
    op.inverse_std.data<float>()[row] = inverse_std;
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector normalised = hn::Mul(hn::Sub(load(x.data + i, n), set(mean)), set(inverse_std));
      store(hn::MulAdd(normalised, load(weight + i, n), load(bias + i, n)), y + i, n);
    });
  }
}

// With x̂ = (x - mean)·r (r the inverse deviation) and g = d_y·w:
//   d_x = r·(g - mean(g) - x̂·mean(g·x̂)) + d_sum,  d_w = Σ_rows d_y·x̂,  d_b = Σ_rows d_y.
template <class T>
void backward_rows(const LayerNormBackward& op, std::int64_t begin, std::int64_t end,
                   float* d_weight, float* d_bias) {
  for (std::int64_t index = begin; index < end; ++index) {
    const GradientRow<T> row = gradient_row<T>(op, index);
    const Vector mean = set(op.mean.data<float>()[index]);
    const Vector r = set(op.inverse_std.data<float>()[index]);
    const auto normalised = [&](std::int64_t i, std::int64_t n)
                                HWY_ATTR { return hn::Mul(hn::Sub(load(row.x + i, n), mean), r); };
    Vector total = zero(), dot = zero();
    for_each_vector(row.cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector x = normalised(i, n), d_y = load(row.d_y + i, n);
      const Vector g = hn::Mul(d_y, load(row.weight + i, n));
      total = hn::Add(total, g);
      dot = hn::MulAdd(g, x, dot);
      if (d_weight) {
        store(hn::MulAdd(d_y, x, load(d_weight + i, n)), d_weight + i, n);
        store(hn::Add(d_y, load(d_bias + i, n)), d_bias + i, n);
      }
    });
    const auto cols = static_cast<float>(row.cols);
    write_d_x(row, r, set(sum(total) / cols), set(sum(dot) / cols), normalised);
  }
}

void layer_norm_forward(Stream&, const LayerNormForward& op) {
  parallel_for(op.x.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
    visit_float(op.x.dtype(), [&]<class T>(T) { forward_rows<T>(op, begin, end); });
  });
}

void layer_norm_backward(Stream& stream, const LayerNormBackward& op) {
  sum_over_rows(stream, op.x.dim(0), {op.d_weight, op.d_bias},
                [&](std::int64_t begin, std::int64_t end, float* partial) {
                  float* const d_bias = partial ? partial + op.x.dim(1) : nullptr;
                  visit_float(op.x.dtype(), [&]<class T>(T) {
                    backward_rows<T>(op, begin, end, partial, d_bias);
                  });
                });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(layer_norm_forward);
HWY_EXPORT(layer_norm_backward);

void register_layer_norm(OperationTable& table) {
  table.add<LayerNormForward>([](Stream& s, const LayerNormForward& op) {
    HWY_DYNAMIC_DISPATCH(layer_norm_forward)(s, op);
  });
  table.add<LayerNormBackward>([](Stream& s, const LayerNormBackward& op) {
    HWY_DYNAMIC_DISPATCH(layer_norm_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
