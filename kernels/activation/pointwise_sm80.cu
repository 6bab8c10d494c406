// quick-gelu, SiLU and SwiGLU on GPUs, from sm_80 on: one pass over flat memory. Bytes for elements
// of e bytes: activation 2·e forward and 3·e backward; SwiGLU 3·e forward, 5·e backward, 6·e with y.
// About 20 instructions an element, two of them on the special function unit (exponential and
// reciprocal). Bound: HBM bandwidth; in bf16 an H100 has some 50 instructions' time for the 6 bytes of
// SwiGLU's forward.
#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/activation/activation_gpu.h"
#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/math.h"
#include "kernels/gpu/pointwise.h"

namespace orchard::GPU_NAMESPACE {
namespace {

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
__device__ float slope(float kx, float s) {
  return fmaf(fmaf(-s, kx, kx), s, s);
}

template <class T>
struct Activate {
  static constexpr int width = per_vector<T>;
  const T* x;
  T* y;
  float k;

  template <int n>
  __device__ Values<n> read(std::int64_t i) const {
    return load_values<n>(x + i);
  }
  template <int n>
  __device__ void write(std::int64_t i, const Values<n>& in) const {
    store_values(y + i, map([&](float value) { return value * sigmoid(value * k); }, in));
  }
};

template <class T>
struct ActivateBackward {
  static constexpr int width = per_vector<T>;
  const T* x;
  const T* d_y;
  T* d_x;
  float k;

  template <int n>
  struct Operands {
    Values<n> x, d_y;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(x + i), load_values<n>(d_y + i)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) const {
    const auto gradient = [&](float value, float d) {
      const float kx = value * k;
      return d * slope(kx, sigmoid(kx));
    };
    store_values(d_x + i, map(gradient, in.x, in.d_y));
  }
};

template <class T>
struct Gate {
  static constexpr int width = per_vector<T>;
  const T* gate;
  const T* up;
  T* y;

  template <int n>
  struct Operands {
    Values<n> gate, up;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(gate + i), load_values<n>(up + i)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) const {
    store_values(y + i, map([](float g, float u) { return g * sigmoid(g) * u; }, in.gate, in.up));
  }
};

template <class T>
struct GateBackward {
  static constexpr int width = per_vector<T>;
  const T* gate;
  const T* up;
  const T* d_y;
  T* d_gate;
  T* d_up;
  T* y;  // or nullptr

  template <int n>
  struct Operands {
    Values<n> gate, up, d_y;
  };
  template <int n>
  __device__ Operands<n> read(std::int64_t i) const {
    return {load_values<n>(gate + i), load_values<n>(up + i), load_values<n>(d_y + i)};
  }
  template <int n>
  __device__ void write(std::int64_t i, const Operands<n>& in) const {
    Values<n> to_gate, to_up, output;
#pragma unroll
    for (int e = 0; e < n; ++e) {
      const float g = in.gate[e], s = sigmoid(g), silu = g * s;
      to_gate[e] = in.d_y[e] * in.up[e] * slope(g, s);
      to_up[e] = in.d_y[e] * silu;
      output[e] = silu * in.up[e];
    }
    store_values(d_gate + i, to_gate);
    store_values(d_up + i, to_up);
    if (y != nullptr) store_values(y + i, output);
  }
};

template <class T>
void activation_forward(Stream& stream, const ActivationForward& op) {
  const Activate<T> body{op.x.data<T>(), op.y.data<T>(), steepness(op.kind)};
  launch_pointwise(stream, "activation_forward", body,
                   {.count = op.x.numel(), .vectors = all_aligned(16, {body.x, body.y})});
}

template <class T>
void activation_backward(Stream& stream, const ActivationBackward& op) {
  const ActivateBackward<T> body{op.x.data<T>(), op.d_y.data<T>(), op.d_x.data<T>(),
                                 steepness(op.kind)};
  launch_pointwise(
      stream, "activation_backward", body,
      {.count = op.x.numel(), .vectors = all_aligned(16, {body.x, body.d_y, body.d_x})});
}

// All elements, or those of the rows that count.
template <class Operation>
Elements elements_of(const Operation& op, bool vectors) {
  return {.count = op.gate.numel(),
          .vectors = vectors,
          .row_count = op.row_count.template data<std::int32_t>(),
          .row_size = op.gate.dim(1)};
}

template <class T>
void swiglu_forward(Stream& stream, const SwiGluForward& op) {
  const Gate<T> body{op.gate.data<T>(), op.up.data<T>(), op.y.data<T>()};
  launch_pointwise(stream, "swiglu_forward", body,
                   elements_of(op, all_aligned(16, {body.gate, body.up, body.y})));
}

template <class T>
void swiglu_backward(Stream& stream, const SwiGluBackward& op) {
  const GateBackward<T> body{op.gate.data<T>(),   op.up.data<T>(),   op.d_y.data<T>(),
                             op.d_gate.data<T>(), op.d_up.data<T>(), op.y.data<T>()};
  const bool vectors =
      all_aligned(16, {body.gate, body.up, body.d_y, body.d_gate, body.d_up, body.y});
  launch_pointwise(stream, "swiglu_backward", body, elements_of(op, vectors));
}

}  // namespace

void register_pointwise_activation(OperationTable& table) {
  table.add<ActivationForward>([](Stream& stream, const ActivationForward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { activation_forward<T>(stream, op); });
  });
  table.add<ActivationBackward>([](Stream& stream, const ActivationBackward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { activation_backward<T>(stream, op); });
  });
  table.add<SwiGluForward>([](Stream& stream, const SwiGluForward& op) {
    visit_float(op.gate.dtype(), [&]<class T>(T) { swiglu_forward<T>(stream, op); });
  });
  table.add<SwiGluBackward>([](Stream& stream, const SwiGluBackward& op) {
    visit_float(op.gate.dtype(), [&]<class T>(T) { swiglu_backward<T>(stream, op); });
  });
}

}  // namespace orchard::GPU_NAMESPACE
