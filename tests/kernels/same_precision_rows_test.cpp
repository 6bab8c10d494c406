// Norms, QK-norm + RoPE and activations: their errors are at most twice those of the same formula in the
// same precision (same_precision.h). On a GPU of any architecture they are the kernels of sm_80.
#include "tests/kernels/activation_reference.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/norm_reference.h"
#include "tests/kernels/qk_norm_rope_reference.h"
#include "tests/kernels/same_precision.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

template <class Real>
std::vector<Real> sum_of(const std::vector<Real>& x, const Guarded& y) {
  std::vector<Real> sum = values_as<Real>(y);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
  return sum;
}

struct RowsCase {
  DType dtype;
  std::int64_t rows, cols;
};

struct NormOperands {
  Guarded x, delta, weight, bias, d_y, d_sum, d_weight, d_bias;

  explicit NormOperands(const RowsCase& c)
      : x(random_normal(c.dtype, {c.rows, c.cols}, 1, 1, 3)),  // mean of 3 deviations
        delta(random_normal(c.dtype, {c.rows, c.cols}, 2)),
        weight(random_normal(c.dtype, {c.cols}, 3)),
        bias(random_normal(c.dtype, {c.cols}, 4)),
        d_y(random_normal(c.dtype, {c.rows, c.cols}, 5)),
        d_sum(random_normal(c.dtype, {c.rows, c.cols}, 6)),
        d_weight(random_normal(f32, {c.cols}, 7)),
        d_bias(random_normal(f32, {c.cols}, 8)) {}
};

// Forward of the sum that the kernel stored, whose rounding would hide those of the rest, and backward.
template <class Real>
struct NormFormula {
  std::vector<Real> sum, y, mean, inverse;
  NormGradients<Real> d;

  NormFormula(NormKind kind, const NormOperands& o, const Guarded& stored_sum)
      : sum(sum_of(values_as<Real>(o.x), o.delta)) {
    const std::vector<Real> input = values_as<Real>(stored_sum), weight = values_as<Real>(o.weight);
    y = norm_reference(kind, input, weight,
                       kind == NormKind::layer ? values_as<Real>(o.bias) : std::vector<Real>{});
    for (std::size_t row = 0; row < input.size() / weight.size(); ++row) {
      const NormStatistics<Real> s = norm_statistics(kind, input, row, weight.size());
      mean.push_back(s.mean), inverse.push_back(s.inverse);
    }
    d = norm_reference_gradients(kind, input, weight, values_as<Real>(o.d_y));
    d.x = sum_of(d.x, o.d_sum);
    d.weight = sum_of(d.weight, o.d_weight);
    d.bias = sum_of(d.bias, o.d_bias);
  }
};

class Norms : public DeviceTest<RowsCase> {
 protected:
  void check(NormKind kind) {
    NormOperands o(parameter());
    Guarded sum(o.x.dtype(), o.x.shape()), y = sum, d_x = sum;
    Guarded mean(f32, {parameter().rows}), inverse = mean;
    OnDevice x_d = on_device(o.x), delta_d = on_device(o.delta), weight_d = on_device(o.weight);
    OnDevice bias_d = on_device(o.bias), d_y_d = on_device(o.d_y), d_sum_d = on_device(o.d_sum);
    Guarded d_weight = o.d_weight, d_bias = o.d_bias;
    OnDevice d_weight_d = on_device(d_weight), d_bias_d = on_device(d_bias);
    OnDevice sum_d = on_device(sum), y_d = on_device(y), d_x_d = on_device(d_x);
    OnDevice mean_d = on_device(mean), inverse_d = on_device(inverse);
    if (kind == NormKind::rms) {
      run(stream(), RmsNormForward{.x = x_d,
                                   .delta = delta_d,
                                   .weight = weight_d,
                                   .sum = sum_d,
                                   .y = y_d,
                                   .inverse_rms = inverse_d});
      run(stream(), RmsNormBackward{.x = sum_d,
                                    .weight = weight_d,
                                    .inverse_rms = inverse_d,
                                    .d_y = d_y_d,
                                    .d_sum = d_sum_d,
                                    .d_x = d_x_d,
                                    .d_weight = d_weight_d});
    } else {
      run(stream(), LayerNormForward{.x = x_d,
                                     .delta = delta_d,
                                     .weight = weight_d,
                                     .bias = bias_d,
                                     .sum = sum_d,
                                     .y = y_d,
                                     .mean = mean_d,
                                     .inverse_std = inverse_d});
      run(stream(), LayerNormBackward{.x = sum_d,
                                      .weight = weight_d,
                                      .mean = mean_d,
                                      .inverse_std = inverse_d,
                                      .d_y = d_y_d,
                                      .d_sum = d_sum_d,
                                      .d_x = d_x_d,
                                      .d_weight = d_weight_d,
                                      .d_bias = d_bias_d});
    }
    for (OnDevice* const output :
         {&sum_d, &y_d, &mean_d, &inverse_d, &d_x_d, &d_weight_d, &d_bias_d}) {
      output->download();
    }
    stream().synchronize();
    const NormFormula<double> exact(kind, o, sum);
    const NormFormula<float> plain(kind, o, sum);
    expect_twice(sum, exact.sum, plain.sum, "sum");
    expect_twice(y, exact.y, plain.y, "y");
    expect_twice(inverse, exact.inverse, plain.inverse, "inverse");
    expect_twice(d_x, exact.d.x, plain.d.x, "d_x");
    expect_twice(d_weight, exact.d.weight, plain.d.weight, "d_weight");
    if (kind == NormKind::rms) return;
    expect_twice(mean, exact.mean, plain.mean, "mean");
    expect_twice(d_bias, exact.d.bias, plain.d.bias, "d_bias");
  }
};

TEST_P(Norms, RmsErrsAtMostTwiceAsMuchAsThePlainFormula) {
  check(NormKind::rms);
}
TEST_P(Norms, LayerErrsAtMostTwiceAsMuchAsThePlainFormula) {
  check(NormKind::layer);
}

// Rows that a warp holds, that a block holds, and that none does; long sums over columns and over rows.
INSTANTIATE_TEST_SUITE_P(
    Shapes, Norms,
    ::testing::Combine(every_device(),
                       ::testing::Values(RowsCase{f32, 65, 127}, RowsCase{f32, 1100, 40},
                                         RowsCase{f32, 9, 4096}, RowsCase{f32, 5, 8200},
                                         RowsCase{b16, 257, 509}, RowsCase{b16, 1100, 40},
                                         RowsCase{b16, 9, 8192}, RowsCase{b16, 5, 16400})),
    device_test_name<RowsCase>);

struct HeadsCase {
  DType dtype;
  std::int64_t tokens, heads, head_dim;
};

struct HeadsOperands {
  static constexpr std::int64_t max_positions = 600;
  Guarded x, weight, rotation, d_y, d_weight, positions;

  explicit HeadsOperands(const HeadsCase& c)
      : x(random_normal(c.dtype, {c.tokens, c.heads, c.head_dim}, 1)),
        weight(random_normal(c.dtype, {c.head_dim}, 2)),
        rotation(f32, {max_positions, c.head_dim}),
        d_y(random_normal(c.dtype, {c.tokens, c.heads, c.head_dim}, 3)),
        d_weight(random_normal(f32, {c.head_dim}, 4)),
        positions(DType::i32, {c.tokens}) {
    rotation_table(rotation.tensor().data<float>(), max_positions, c.head_dim, 5e5);
    for (std::int64_t t = 0; t < c.tokens; ++t)
      positions.set(t, static_cast<double>(t * 37 % max_positions));
  }

  template <class Real>
  QkNormRopeOperands<Real> as() const {
    const std::vector<double> at = positions.values();
    return {values_as<Real>(weight), values_as<Real>(rotation),
            static_cast<std::size_t>(x.shape()[1]), std::vector<int>(at.begin(), at.end())};
  }
};

template <class Real>
struct HeadsFormula {
  std::vector<Real> y, inverse_rms;
  QkNormRopeGradients<Real> d;

  explicit HeadsFormula(const HeadsOperands& o)
      : y(qk_norm_rope_reference(values_as<Real>(o.x), o.as<Real>())),
        d(qk_norm_rope_gradients(values_as<Real>(o.x), o.as<Real>(), values_as<Real>(o.d_y))) {
    d.weight = sum_of(d.weight, o.d_weight);
    const std::vector<Real> x = values_as<Real>(o.x);
    const auto head_dim = static_cast<std::size_t>(o.x.shape()[2]);
    for (std::size_t i = 0; i < x.size(); i += head_dim)
      inverse_rms.push_back(inverse_rms_of(&x[i], head_dim));
  }
};

using QkNormRope = DeviceTest<HeadsCase>;

TEST_P(QkNormRope, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  HeadsOperands o(parameter());
  Guarded y(o.x.dtype(), o.x.shape()), d_x = y, d_weight = o.d_weight;
  Guarded inverse_rms(f32, {parameter().tokens, parameter().heads});
  OnDevice x_d = on_device(o.x), weight_d = on_device(o.weight), turns_d = on_device(o.rotation);
  OnDevice positions_d = on_device(o.positions), d_y_d = on_device(o.d_y), y_d = on_device(y);
  OnDevice d_x_d = on_device(d_x), d_weight_d = on_device(d_weight);
  OnDevice inverse_rms_d = on_device(inverse_rms);
  run_and_download(stream(),
                   QkNormRopeForward{.x = x_d,
                                     .weight = weight_d,
                                     .rotation = turns_d,
                                     .positions = positions_d,
                                     .y = y_d,
                                     .inverse_rms = inverse_rms_d},
                   {&y_d, &inverse_rms_d});
  run_and_download(stream(),
                   QkNormRopeBackward{.x = x_d,
                                      .weight = weight_d,
                                      .rotation = turns_d,
                                      .positions = positions_d,
                                      .inverse_rms = inverse_rms_d,
                                      .d_y = d_y_d,
                                      .d_x = d_x_d,
                                      .d_weight = d_weight_d},
                   {&d_x_d, &d_weight_d});
  const HeadsFormula<double> exact(o);
  const HeadsFormula<float> plain(o);
  expect_twice(y, exact.y, plain.y, "y");
  expect_twice(inverse_rms, exact.inverse_rms, plain.inverse_rms, "inverse_rms");
  expect_twice(d_x, exact.d.x, plain.d.x, "d_x");
  expect_twice(d_weight, exact.d.weight, plain.d.weight, "d_weight");
}

// Heads of vectors and of single elements; long sums over tokens.
INSTANTIATE_TEST_SUITE_P(
    Shapes, QkNormRope,
    ::testing::Combine(every_device(),
                       ::testing::Values(HeadsCase{f32, 131, 4, 64}, HeadsCase{f32, 700, 3, 34},
                                         HeadsCase{b16, 257, 2, 128}, HeadsCase{b16, 67, 3, 30})),
    device_test_name<HeadsCase>);

using Activations = DeviceTest<RowsCase>;

template <class Real>
struct ActivationFormula {
  std::vector<Real> y, d_x;

  ActivationFormula(Activation kind, const Guarded& x, const Guarded& d_y) {
    for (std::int64_t i = 0; i < x.size(); ++i) {
      const auto at = static_cast<Real>(x.at(i));
      y.push_back(activated(kind, at));
      d_x.push_back(static_cast<Real>(d_y.at(i)) * activation_slope(kind, at));
    }
  }
};

TEST_P(Activations, ErrAtMostTwiceAsMuchAsThePlainFormula) {
  const auto& [dtype, rows, cols] = parameter();
  const Shape shape{rows, cols};
  for (const Activation kind : {Activation::quick_gelu, Activation::silu}) {
    SCOPED_TRACE(kind == Activation::silu ? "silu" : "quick_gelu");
    Guarded x = random_normal(dtype, shape, 1, 3), d_y = random_normal(dtype, shape, 2);
    Guarded y(dtype, shape), d_x(dtype, shape);
    OnDevice x_d = on_device(x), d_y_d = on_device(d_y), y_d = on_device(y);
    OnDevice d_x_d = on_device(d_x);
    run_and_download(stream(), ActivationForward{.kind = kind, .x = x_d, .y = y_d}, {&y_d});
    run_and_download(
        stream(), ActivationBackward{.kind = kind, .x = x_d, .d_y = d_y_d, .d_x = d_x_d}, {&d_x_d});
    const ActivationFormula<double> exact(kind, x, d_y);
    const ActivationFormula<float> plain(kind, x, d_y);
    expect_twice(y, exact.y, plain.y, "y");
    expect_twice(d_x, exact.d_x, plain.d_x, "d_x");
  }
}

template <class Real>
struct SwiGluFormula {
  std::vector<Real> y, d_gate, d_up;

  SwiGluFormula(const Guarded& gates, const Guarded& ups, const Guarded& d_ys) {
    for (std::int64_t i = 0; i < gates.size(); ++i) {
      const auto gate = static_cast<Real>(gates.at(i)), up = static_cast<Real>(ups.at(i)),
                 d_y = static_cast<Real>(d_ys.at(i));
      y.push_back(activated(Activation::silu, gate) * up);
      d_gate.push_back(d_y * up * activation_slope(Activation::silu, gate));
      d_up.push_back(d_y * activated(Activation::silu, gate));
    }
  }
};

TEST_P(Activations, SwiGluErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const auto& [dtype, rows, cols] = parameter();
  const Shape shape{rows, cols};
  Guarded gate = random_normal(dtype, shape, 1, 2), up = random_normal(dtype, shape, 2);
  Guarded d_y = random_normal(dtype, shape, 3);
  Guarded y(dtype, shape), d_gate(dtype, shape), d_up(dtype, shape);
  OnDevice gate_d = on_device(gate), up_d = on_device(up), d_y_d = on_device(d_y);
  OnDevice y_d = on_device(y), d_gate_d = on_device(d_gate), d_up_d = on_device(d_up);
  run_and_download(stream(), SwiGluForward{.gate = gate_d, .up = up_d, .y = y_d}, {&y_d});
  run_and_download(
      stream(),
      SwiGluBackward{.gate = gate_d, .up = up_d, .d_y = d_y_d, .d_gate = d_gate_d, .d_up = d_up_d},
      {&d_gate_d, &d_up_d});
  const SwiGluFormula<double> exact(gate, up, d_y);
  const SwiGluFormula<float> plain(gate, up, d_y);
  expect_twice(y, exact.y, plain.y, "y");
  expect_twice(d_gate, exact.d_gate, plain.d_gate, "d_gate");
  expect_twice(d_up, exact.d_up, plain.d_up, "d_up");
}

INSTANTIATE_TEST_SUITE_P(Shapes, Activations,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(RowsCase{f32, 67, 129},
                                                              RowsCase{b16, 67, 128})),
                         device_test_name<RowsCase>);

}  // namespace
}  // namespace orchard::testing
