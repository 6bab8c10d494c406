// The finite-difference harness of layers. A layer under test is wrapped into a scalar function of
// its input and parameters, L = sum(y · r) with a fixed random r, so d_y = r; the analytic gradient
// of L is compared with central differences along random directions, which exercises every element
// at once.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "models/layer.h"
#include "parallel/random.h"
#include "tests/models/host_scales.h"

namespace orchard::testing {

// A device, its memory and a batch description for one layer test.
class LayerBench {
 public:
  LayerBench() : device_(make_cpu_device()), stream_(device_->make_stream()), arena_(*device_) {}

  Device& device() { return *device_; }
  Stream& stream() { return *stream_; }
  Arena& arena() { return arena_; }
  ParameterStore& store() { return store_; }
  DeviceBatch& batch() { return batch_; }

  void allocate_parameters() {
    store_.allocate(*device_, *stream_, DType::f32);
    // Not the initial values: ones and zeros would hide a wrong gradient of a norm's scale or a
    // bias.
    for (Parameter& p : store_.parameters()) {
      const CounterRandom random(7, p.spec.name);
      float* const values = p.master.data<float>();
      const double shift = p.spec.initializer == Initializer::ones ? 1.0 : 0.0;
      for (std::int64_t i = 0; i < p.master.numel(); ++i) {
        values[i] = static_cast<float>(shift + 0.3 * random.normal(static_cast<std::uint64_t>(i)));
      }
    }
  }

  // An f32 tensor that outlives every arena reset.
  Tensor normal(const std::string& name, Shape shape, double scale = 1.0) {
    const Tensor t = keep(DType::f32, shape);
    const CounterRandom random(11, name);
    for (std::int64_t i = 0; i < t.numel(); ++i) {
      t.data<float>()[i] = static_cast<float>(scale * random.normal(static_cast<std::uint64_t>(i)));
    }
    return t;
  }

  Tensor integers(const std::vector<std::int32_t>& values) {
    const Tensor t = keep(DType::i32, {static_cast<std::int64_t>(values.size())});
    std::copy(values.begin(), values.end(), t.data<std::int32_t>());
    return t;
  }

  // A copy of integers that outlives every arena reset.
  ConstTensor kept(ConstTensor t) {
    const auto* p = t.data<std::int32_t>();
    return integers({p, p + t.numel()}).reshape(t.shape());
  }

  Pass pass(LossScales scales = {}, const RoutingReplay* replay = nullptr) {
    return {
        .stream = *stream_, .arena = arena_, .batch = batch_, .scales = scales, .replay = replay};
  }
  // Frees what earlier passes allocated.
  Pass fresh_pass(LossScales scales = {}, const RoutingReplay* replay = nullptr) {
    arena_.reset(*stream_);
    return pass(scales, replay);
  }

 private:
  Tensor keep(DType dtype, Shape shape) {
    kept_.push_back(device_->allocate(static_cast<std::size_t>(shape.numel()) * size_of(dtype)));
    return kept_.back().tensor(dtype, shape);
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  Arena arena_;
  ParameterStore store_;
  DeviceBatch batch_;
  std::vector<Buffer> kept_;
};

// What the harness needs of a layer: the value of L, and L with its gradients. `d_x` is empty where
// the layer's input has no gradient.
struct Differentiable {
  std::function<double()> value;
  std::function<void(Tensor d_x)> gradient;  // adds parameter gradients to the store, writes d_x
  Tensor x;  // the input, varied in place; empty: only parameters vary
};

inline double dot(ConstTensor a, ConstTensor b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i)
    sum += static_cast<double>(a.data<float>()[i]) * b.data<float>()[i];
  return sum;
}

// L of a layer with this Saved: forward(pass, saved) returns y, backward(pass, saved, d_x) starts
// from d_y = r.
template <class Saved, class Forward, class Backward>
Differentiable differentiable(LayerBench& bench, Tensor x, ConstTensor r, Forward forward,
                              Backward backward) {
  return {.value =
              [=, &bench] {
                Pass pass = bench.fresh_pass();
                Saved saved;
                return dot(forward(pass, saved), r);
              },
          .gradient =
              [=, &bench](Tensor d_x) {
                Pass pass = bench.fresh_pass();
                Saved saved;
                forward(pass, saved);
                backward(pass, saved, d_x);
              },
          .x = x};
}

// Central difference of `value` along `direction` on `where`, by Richardson's rule from steps h and
// 2h, so that the truncation error is O(h^4).
inline double directional(const std::function<double()>& value, Tensor where,
                          const std::vector<float>& direction, double h) {
  float* const p = where.data<float>();
  const std::vector<float> original(p, p + where.numel());
  const auto at = [&](double step) {
    for (std::size_t i = 0; i < original.size(); ++i)
      p[i] = static_cast<float>(original[i] + step * direction[i]);
    const double result = value();
    std::copy(original.begin(), original.end(), p);
    return result;
  };
  const double fine = (at(h) - at(-h)) / (2 * h), coarse = (at(2 * h) - at(-2 * h)) / (4 * h);
  return (4 * fine - coarse) / 3;
}

// Checks d_x and every parameter's gradient along two random directions each. `tolerance` is
// relative to the size of the gradient; the noise of the differences comes on top: L carries a
// rounding error of some 3e-6 of the terms it sums, which a difference divides by h. (A gradient
// that is exactly zero, like that of a key bias without QK-norm, shows nothing but this noise.)
inline void expect_gradients(LayerBench& bench, const Differentiable& layer, double h = 1e-2,
                             double tolerance = 5e-3) {
  const double noise = 3e-6 * (1 + std::abs(layer.value())) / h;
  bench.store().zero_gradients(bench.stream());
  Tensor d_x;
  if (layer.x) d_x = bench.normal("d_x", layer.x.shape());
  layer.gradient(d_x);
  bench.stream().synchronize();

  const auto compare = [&](const std::string& name, Tensor where, ConstTensor gradient) {
    double norm = std::sqrt(dot(gradient, gradient));
    ASSERT_TRUE(std::isfinite(norm)) << name;
    for (const char* which : {"first", "second"}) {
      std::vector<float> direction(static_cast<std::size_t>(where.numel()));
      const CounterRandom random(3, name + which);
      double length = 0;
      for (std::size_t i = 0; i < direction.size(); ++i) {
        // Random, with a share of the gradient itself, so that a large gradient cannot hide at a
        // right angle.
        direction[i] =
            static_cast<float>(random.normal(i) / std::sqrt(static_cast<double>(direction.size())) +
                               (norm > 0 ? gradient.data<float>()[i] / norm : 0));
        length += static_cast<double>(direction[i]) * direction[i];
      }
      for (float& v : direction) v = static_cast<float>(v / std::sqrt(length));
      double analytic = 0;
      for (std::size_t i = 0; i < direction.size(); ++i)
        analytic += static_cast<double>(direction[i]) * gradient.data<float>()[i];
      const double numeric = directional(layer.value, where, direction, h);
      EXPECT_NEAR(analytic, numeric, tolerance * norm + noise)
          << name << ", " << which << " direction, gradient norm " << norm;
    }
  };
  if (layer.x) compare("input", layer.x, d_x);
  for (Parameter& p : bench.store().parameters()) compare(p.spec.name, p.master, p.gradient);
}

}  // namespace orchard::testing
