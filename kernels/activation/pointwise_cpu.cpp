// quick-gelu, SiLU and SwiGLU on the CPU: one pass over flat memory. About 25 FLOPs an element and
// one division (two where a second sigmoid is not shared); bound by memory bandwidth once the
// tensors leave the L2 cache. Bytes for elements of e bytes: activation 2·e forward and 3·e
// backward; SwiGLU 3·e forward, 5·e backward, 6·e with y.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation/pointwise_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include "kernels/activation/activation.h"
#include "kernels/activation/activation_cpu.h"
#include "kernels/core/visit.h"
#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/device/device.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Both activations are x·σ(k·x), with this k.
float steepness(Activation kind) {
  switch (kind) {
    case Activation::quick_gelu:
      return 1.702f;
    case Activation::silu:
      return 1.0f;
  }
  fail("activation {} does not exist", static_cast<int>(kind));
}

// d/dx x·σ(k·x) = s·(1 + k·x·(1 - s)), where s = σ(k·x).
HWY_INLINE Vector slope(Vector kx, Vector s) {
  return hn::MulAdd(hn::NegMulAdd(s, kx, kx), s, s);
}

template <class T>
void activation_forward(const ActivationForward& op) {
  const T* const x = op.x.data<T>();
  const float k = steepness(op.kind);
  parallel_transform(op.x.numel(), op.y.data<T>(), [=](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector v = load(x + i, n);
    return hn::Mul(v, sigmoid<T>(hn::Mul(v, set(k))));
  });
}

template <class T>
void activation_backward(const ActivationBackward& op) {
  const T* const x = op.x.data<T>();
  const T* const d_y = op.d_y.data<T>();
  const float k = steepness(op.kind);
  parallel_transform(op.x.numel(), op.d_x.data<T>(), [=](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector kx = hn::Mul(load(x + i, n), set(k));
    return hn::Mul(load(d_y + i, n), slope(kx, sigmoid<T>(kx)));
  });
}

// Elements in the rows that count.
template <class Operation>
std::int64_t active_elements(const Operation& op, std::string_view name) {
  const std::int64_t rows = op.gate.dim(0), cols = op.gate.dim(1);
  if (!op.row_count) return rows * cols;
  const std::int64_t count = *op.row_count.template data<std::int32_t>();
  require(count >= 0 && count <= rows, "{}: row_count is {}, but gate has {} rows", name, count,
          rows);
  return count * cols;
}

template <class T>
void swiglu_forward(const SwiGluForward& op) {
  const T* const gate = op.gate.data<T>();
  const T* const up = op.up.data<T>();
  const std::int64_t size = active_elements(op, "SwiGluForward");
  parallel_transform(size, op.y.data<T>(), [=](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector g = load(gate + i, n);
    return hn::Mul(hn::Mul(g, sigmoid<T>(g)), load(up + i, n));
  });
}

template <class T>
void swiglu_backward(const SwiGluBackward& op) {
  const T* const gate = op.gate.data<T>();
  const T* const up = op.up.data<T>();
  const T* const d_y = op.d_y.data<T>();
  T* const d_gate = op.d_gate.data<T>();
  T* const d_up = op.d_up.data<T>();
  T* const y = op.y.data<T>();
  const std::int64_t size = active_elements(op, "SwiGluBackward");
  parallel_vectors(size, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector g = load(gate + i, n), u = load(up + i, n), d = load(d_y + i, n);
    const Vector s = sigmoid<T>(g);
    const Vector silu = hn::Mul(g, s);
    store(hn::Mul(hn::Mul(d, u), slope(g, s)), d_gate + i, n);
    store(hn::Mul(d, silu), d_up + i, n);
    if (y) store(hn::Mul(silu, u), y + i, n);
  });
}

void run_activation_forward(Stream&, const ActivationForward& op) {
  visit_float(op.x.dtype(), [&]<class T>(T) { activation_forward<T>(op); });
}
void run_activation_backward(Stream&, const ActivationBackward& op) {
  visit_float(op.x.dtype(), [&]<class T>(T) { activation_backward<T>(op); });
}
void run_swiglu_forward(Stream&, const SwiGluForward& op) {
  visit_float(op.gate.dtype(), [&]<class T>(T) { swiglu_forward<T>(op); });
}
void run_swiglu_backward(Stream&, const SwiGluBackward& op) {
  visit_float(op.gate.dtype(), [&]<class T>(T) { swiglu_backward<T>(op); });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(run_activation_forward);
HWY_EXPORT(run_activation_backward);
HWY_EXPORT(run_swiglu_forward);
HWY_EXPORT(run_swiglu_backward);

void register_pointwise_activation(OperationTable& table) {
  table.add<ActivationForward>([](Stream& s, const ActivationForward& op) {
    HWY_DYNAMIC_DISPATCH(run_activation_forward)(s, op);
  });
  table.add<ActivationBackward>([](Stream& s, const ActivationBackward& op) {
    HWY_DYNAMIC_DISPATCH(run_activation_backward)(s, op);
  });
  table.add<SwiGluForward>([](Stream& s, const SwiGluForward& op) {
    HWY_DYNAMIC_DISPATCH(run_swiglu_forward)(s, op);
  });
  table.add<SwiGluBackward>([](Stream& s, const SwiGluBackward& op) {
    HWY_DYNAMIC_DISPATCH(run_swiglu_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
