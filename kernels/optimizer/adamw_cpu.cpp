// AdamW on the CPU: one pass over weights, gradients and both moments. Bytes: 28 per element (four
// read, three written back), 30 with the bf16 copy; about 15 FLOPs. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/optimizer/adamw_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cmath>

#include "kernels/device/device.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_cpu.h"
#include "kernels/optimizer/scaled_gradient-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

void adamw(Stream&, const AdamW& op) {
  const ScaledGradient gradient(op);
  if (!gradient.is_usable()) return;
  float* const weights = op.weights.data<float>();
  float* const m = op.m.data<float>();
  float* const v = op.v.data<float>();
  bf16* const copy = op.copy.data<bf16>();
  // In double: 1 - β^t loses half its digits in fp32 when t is small and β near one.
  const auto t = static_cast<double>(op.step);
  const double beta1 = op.beta1, beta2 = op.beta2;
  const auto correction1 = static_cast<float>(1.0 / (1.0 - std::pow(beta1, t)));
  const auto correction2 = static_cast<float>(1.0 / (1.0 - std::pow(beta2, t)));
  const auto rest1 = static_cast<float>(1.0 - beta1);
  const auto rest2 = static_cast<float>(1.0 - beta2);
  const auto decay = static_cast<float>(static_cast<double>(op.lr) * op.weight_decay);
  parallel_vectors(op.weights.numel(), [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector g = gradient(i, n);
    const Vector m_new = hn::MulAdd(load(m + i, n), set(op.beta1), hn::Mul(g, set(rest1)));
    const Vector v_new =
        hn::MulAdd(load(v + i, n), set(op.beta2), hn::Mul(hn::Mul(g, g), set(rest2)));
    const Vector deviation = hn::Add(hn::Sqrt(hn::Mul(v_new, set(correction2))), set(op.epsilon));
    const Vector update = hn::Div(hn::Mul(m_new, set(correction1 * op.lr)), deviation);
    const Vector w = load(weights + i, n);
    // One rounding of the weight's size.
    const Vector w_new = hn::Sub(w, hn::MulAdd(w, set(decay), update));
    store(m_new, m + i, n);
    store(v_new, v + i, n);
    store(w_new, weights + i, n);
    if (copy) store(w_new, copy + i, n);
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(adamw);

void register_adamw(OperationTable& table) {
  table.add<AdamW>([](Stream& s, const AdamW& op) { HWY_DYNAMIC_DISPATCH(adamw)(s, op); });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
