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
  return {hn::MulAdd(v.second, turn.second, hn::Mul(v.first, turn.first)),
          hn::NegMulAdd(v.first, turn.second, hn::Mul(v.second, turn.first))};
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
HWY_INLINE float sum_of_squares(const T* x, std::int64_t count) {
  Vector squares = zero();
  for_each_vector(count, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    const Vector v = load(x + i, n);
    squares = hn::MulAdd(v, v, squares);
  });
  return sum(squares);
}

// A token's heads together: one square root and one division serve a vector of heads, where those of
// a single head would keep all that follows waiting.
template <class T>
void forward_tokens(const QkNormRopeForward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t heads = op.x.dim(1), head_dim = op.x.dim(2), half = head_dim / 2;
  const Vector mean = set(1.0f / static_cast<float>(head_dim)), epsilon = set(op.epsilon);
  const T* const weight = op.weight.data<T>();
  for (std::int64_t token = begin; token < end; ++token) {
    const std::int32_t position = op.positions.data<std::int32_t>()[token];
    const float* const turn = row_of<float>(op.rotation, position, head_dim);
    const T* const x = row_of<T>(op.x, token, heads * head_dim);
    T* const y = row_of<T>(op.y, token, heads * head_dim);
    float* const inverse_rms = row_of<float>(op.inverse_rms, token, heads);
    for (std::int64_t head = 0; head < heads; ++head)
      inverse_rms[head] = sum_of_squares(x + head * head_dim, head_dim);
    for_each_vector(heads, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector squares = hn::MulAdd(load(inverse_rms + i, n), mean, epsilon);
      store(hn::Div(set(1.0f), hn::Sqrt(squares)), inverse_rms + i, n);
    });
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t first = head * head_dim;
      const Vector r = set(inverse_rms[head]);
      for_each_vector(half, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
        const Pair normalised = scale(load_pair(x + first, half, i, n), r);
        const Pair scaled = multiply(normalised, load_pair(weight, half, i, n));
        store_pair(rotate(scaled, load_pair(turn, half, i, n)), y + first, half, i, n);
      });
    }
  }
}

// With h = d_y turned back, x̂ = x·r (r the inverse rms) and g = h·w:
//   d_x = r·(g - x̂·mean(g·x̂)),  d_w = Σ h·x̂ over tokens and heads.
// One head; absent: d_weight.
template <class T>
struct GradientHead {
  const T *x, *weight, *d_y;
  const float* turn;
  std::int64_t half;
  Vector r;

  struct Terms {
    Pair normalised, h, weight;
  };
  HWY_INLINE Terms terms(std::int64_t i, std::int64_t n) const {
    return {scale(load_pair(x, half, i, n), r),
            rotate_back(load_pair(d_y, half, i, n), load_pair(turn, half, i, n)),
            load_pair(weight, half, i, n)};
  }

  // Σ g·x̂; adds to d_weight.
  HWY_INLINE float dot(float* d_weight) const {
    Vector total = zero();
    for_each_vector(half, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Terms t = terms(i, n);
      const Pair gradient = multiply(t.h, t.normalised);
      total = hn::MulAdd(gradient.first, t.weight.first,
                         hn::MulAdd(gradient.second, t.weight.second, total));
      if (d_weight) {
        const Pair before = load_pair(d_weight, half, i, n);
        store_pair({hn::Add(before.first, gradient.first), hn::Add(before.second, gradient.second)},
                   d_weight, half, i, n);
      }
    });
    return sum(total);
  }

  HWY_INLINE void write_d_x(Vector mean, T* d_x) const {
    for_each_vector(half, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Terms t = terms(i, n);
      const Pair g = multiply(t.h, t.weight);
      const Pair out = {hn::NegMulAdd(t.normalised.first, mean, g.first),
                        hn::NegMulAdd(t.normalised.second, mean, g.second)};
      store_pair(scale(out, r), d_x, half, i, n);
    });
  }
};

template <class T>
void backward_tokens(const QkNormRopeBackward& op, std::int64_t begin, std::int64_t end,
                     float* d_weight) {
  // Between the two passes over a head its sum is awaited: so many heads take turns.
  constexpr std::int64_t group = 8;
  const std::int64_t heads = op.x.dim(1), head_dim = op.x.dim(2);
  const float inverse_dim = 1.0f / static_cast<float>(head_dim);
  const T* const weight = op.weight.data<T>();
  for (std::int64_t token = begin; token < end; ++token) {
    const std::int32_t position = op.positions.data<std::int32_t>()[token];
    const float* const turn = row_of<float>(op.rotation, position, head_dim);
    const float* const inverse_rms = row_of<float>(op.inverse_rms, token, heads);
    const T* const x = row_of<T>(op.x, token, heads * head_dim);
    const T* const d_y = row_of<T>(op.d_y, token, heads * head_dim);
    T* const d_x = row_of<T>(op.d_x, token, heads * head_dim);
    const auto head_at = [&](std::int64_t head) HWY_ATTR {
      return GradientHead<T>{x + head * head_dim,   weight,
                             d_y + head * head_dim, turn,
                             head_dim / 2,          set(inverse_rms[head])};
    };
    float means[group];
    for (std::int64_t first = 0; first < heads; first += group) {
      const std::int64_t last = std::min(first + group, heads);
      for (std::int64_t head = first; head < last; ++head)
        means[head - first] = head_at(head).dot(d_weight) * inverse_dim;
      for (std::int64_t head = first; head < last; ++head)
        head_at(head).write_d_x(set(means[head - first]), d_x + head * head_dim);
    }
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
