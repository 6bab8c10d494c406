// QK-norm + RoPE on the CPU. A head is a few vectors long, so both passes over it stay in the L1
// cache and each tensor crosses memory once: 2·e bytes an element forward, 3·e backward. About 8
// FLOPs an element forward, 20 backward (the rotation is undone twice rather than stored). The
// rotation's row is shared by the heads of a token. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/qk_norm_rope_cpu.cpp"
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

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Elements i and half + i, which turn together.
struct Pair {
  Vector first, second;
};

template <class T>
HWY_INLINE Pair load_pair(const T* row, std::int64_t half, std::int64_t i, std::int64_t n) {
  return {load(row + i, n), load(row + half + i, n)};
}
template <class T>
HWY_INLINE void store_pair(Pair v, T* row, std::int64_t half, std::int64_t i, std::int64_t n) {
  store(v.first, row + i, n);
  store(v.second, row + half + i, n);
}
HWY_INLINE Pair multiply(Pair a, Pair b) {
  return {hn::Mul(a.first, b.first), hn::Mul(a.second, b.second)};
}
HWY_INLINE Pair scale(Pair a, Vector factor) {
  return {hn::Mul(a.first, factor), hn::Mul(a.second, factor)};
}

// `turn` holds cos first and sin second.
HWY_INLINE Pair rotate(Pair v, Pair turn) {
  return {hn::NegMulAdd(v.second, turn.second, hn::Mul(v.first, turn.first)),
          hn::MulAdd(v.first, turn.second, hn::Mul(v.second, turn.first))};
}
HWY_INLINE Pair rotate_back(Pair v, Pair turn) {
  return rotate(v, {turn.first, hn::Neg(turn.second)});
}

// A position beyond the table would read foreign memory.
template <class Operation>
void check_positions(const Operation& op, std::string_view name) {
  const std::int32_t* const positions = op.positions.template data<std::int32_t>();
  const std::int64_t count = op.rotation.dim(0);
  for (std::int64_t token = 0; token < op.x.dim(0); ++token) {
    require(positions[token] >= 0 && positions[token] < count,
            "{}: token {} has position {}, outside the rotation table of {} positions", name, token,
            positions[token], count);
  }
}

template <class T>
void forward_tokens(const QkNormRopeForward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t heads = op.x.dim(1), head_dim = op.x.dim(2), half = head_dim / 2;
  const T* const weight = op.weight.data<T>();
  for (std::int64_t row = begin * heads; row < end * heads; ++row) {
    const std::int32_t position = op.positions.data<std::int32_t>()[row / heads];
    const float* const turn = row_of<float>(op.rotation, position, head_dim);
    const T* const x = row_of<T>(op.x, row, head_dim);
    T* const y = row_of<T>(op.y, row, head_dim);
    Vector squares = zero();
    for_each_vector(head_dim, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector v = load(x + i, n);
      squares = hn::MulAdd(v, v, squares);
    });
    const float inverse_rms =
        1.0f / std::sqrt(sum(squares) / static_cast<float>(head_dim) + op.epsilon);
    op.inverse_rms.data<float>()[row] = inverse_rms;
    for_each_vector(half, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Pair normalised = scale(load_pair(x, half, i, n), set(inverse_rms));
      const Pair scaled = multiply(normalised, load_pair(weight, half, i, n));
      store_pair(rotate(scaled, load_pair(turn, half, i, n)), y, half, i, n);
    });
  }
}

// With h = d_y turned back, x̂ = x·r (r the inverse rms) and g = h·w:
//   d_x = r·(g - x̂·mean(g·x̂)),  d_w = Σ h·x̂ over tokens and heads.
template <class T>
void backward_tokens(const QkNormRopeBackward& op, std::int64_t begin, std::int64_t end,
                     float* d_weight) {
  const std::int64_t heads = op.x.dim(1), head_dim = op.x.dim(2), half = head_dim / 2;
  const T* const weight = op.weight.data<T>();
  for (std::int64_t row = begin * heads; row < end * heads; ++row) {
    const std::int32_t position = op.positions.data<std::int32_t>()[row / heads];
    const float* const turn = row_of<float>(op.rotation, position, head_dim);
    const T* const x = row_of<T>(op.x, row, head_dim);
    const T* const d_y = row_of<T>(op.d_y, row, head_dim);
    T* const d_x = row_of<T>(op.d_x, row, head_dim);
    const Vector r = set(op.inverse_rms.data<float>()[row]);
    Vector dot = zero();
    for_each_vector(half, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Pair h = rotate_back(load_pair(d_y, half, i, n), load_pair(turn, half, i, n));
      const Pair normalised = scale(load_pair(x, half, i, n), r);
      const Pair gradient = multiply(h, normalised);
      const Pair w = load_pair(weight, half, i, n);
      dot = hn::MulAdd(gradient.first, w.first, hn::MulAdd(gradient.second, w.second, dot));
      if (d_weight) {
        const Pair before = load_pair(d_weight, half, i, n);
        store_pair({hn::Add(before.first, gradient.first), hn::Add(before.second, gradient.second)},
                   d_weight, half, i, n);
      }
    });
    const Vector mean = set(sum(dot) / static_cast<float>(head_dim));
    for_each_vector(half, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Pair h = rotate_back(load_pair(d_y, half, i, n), load_pair(turn, half, i, n));
      const Pair normalised = scale(load_pair(x, half, i, n), r);
      const Pair g = multiply(h, load_pair(weight, half, i, n));
      const Pair out = {hn::NegMulAdd(normalised.first, mean, g.first),
                        hn::NegMulAdd(normalised.second, mean, g.second)};
      store_pair(scale(out, r), d_x, half, i, n);
    });
  }
}

void qk_norm_rope_forward(Stream&, const QkNormRopeForward& op) {
  check_positions(op, "QkNormRopeForward");
  parallel_for(op.x.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
    visit_float(op.x.dtype(), [&]<class T>(T) { forward_tokens<T>(op, begin, end); });
  });
}

void qk_norm_rope_backward(Stream& stream, const QkNormRopeBackward& op) {
  check_positions(op, "QkNormRopeBackward");
  sum_over_rows(
      stream, op.x.dim(0), op.d_weight, [&](std::int64_t begin, std::int64_t end, float* partial) {
        visit_float(op.x.dtype(), [&]<class T>(T) { backward_tokens<T>(op, begin, end, partial); });
      });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(qk_norm_rope_forward);
HWY_EXPORT(qk_norm_rope_backward);

void register_qk_norm_rope(OperationTable& table) {
  table.add<QkNormRopeForward>([](Stream& s, const QkNormRopeForward& op) {
    HWY_DYNAMIC_DISPATCH(qk_norm_rope_forward)(s, op);
  });
  table.add<QkNormRopeBackward>([](Stream& s, const QkNormRopeBackward& op) {
    HWY_DYNAMIC_DISPATCH(qk_norm_rope_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
