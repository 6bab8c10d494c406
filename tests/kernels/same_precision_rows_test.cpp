// Norms, the loss, activations and AdamW: their errors are at most twice those of the same formula in
// the same precision (same_precision.h). On a GPU of any architecture they are the kernels of sm_80.
#include "kernels/loss/loss.h"
#include "tests/kernels/activation_reference.h"
#include "tests/kernels/adamw_reference.h"
#include "tests/kernels/cross_entropy_reference.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/norm_reference.h"
#include "tests/kernels/same_precision.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

void expect_twice(const Guarded& actual, const std::vector<double>& exact,
                  const std::vector<float>& plain, const char* what) {
  expect_at_most_twice_plain_error(actual, exact, rounded_to(actual.dtype(), actual.shape(), plain),
                                   what);
}

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
  std::vector<Real> sum, y;
  NormGradients<Real> d;

  NormFormula(NormKind kind, const NormOperands& o, const Guarded& stored_sum)
      : sum(sum_of(values_as<Real>(o.x), o.delta)) {
    const std::vector<Real> input = values_as<Real>(stored_sum), weight = values_as<Real>(o.weight);
    y = norm_reference(kind, input, weight,
                       kind == NormKind::layer ? values_as<Real>(o.bias) : std::vector<Real>{});
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
    for (OnDevice* const output : {&sum_d, &y_d, &d_x_d, &d_weight_d, &d_bias_d}) {
      output->download();
    }
    stream().synchronize();
    const NormFormula<double> exact(kind, o, sum);
    const NormFormula<float> plain(kind, o, sum);
    expect_twice(sum, exact.sum, plain.sum, "sum");
    expect_twice(y, exact.y, plain.y, "y");
    expect_twice(d_x, exact.d.x, plain.d.x, "d_x");
    expect_twice(d_weight, exact.d.weight, plain.d.weight, "d_weight");
    if (kind == NormKind::layer) expect_twice(d_bias, exact.d.bias, plain.d.bias, "d_bias");
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

using Loss = DeviceTest<RowsCase>;  // dtype of the gradient, columns: the vocabulary

TEST_P(Loss, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const auto& [dtype, rows, vocab] = parameter();
  const auto n = static_cast<std::size_t>(vocab);
  const std::vector<int> where = make_targets(rows, vocab);
  constexpr float scale = 0.1f;
  // A spread of 4 makes single tokens likely, so that large and small probabilities both occur.
  Guarded logits = random_normal(f32, {rows, vocab}, 1, 4), targets = integers({rows}, where);
  Guarded losses(f32, {rows}), d_logits(dtype, {rows, vocab}), factor = number(scale);
  OnDevice logits_d = on_device(logits), targets_d = on_device(targets);
  OnDevice factor_d = on_device(factor);
  OnDevice losses_d = on_device(losses), d_logits_d = on_device(d_logits);
  run_and_download(stream(),
                   CrossEntropy{.logits = logits_d,
                                .targets = targets_d,
                                .scale = factor_d,
                                .losses = losses_d,
                                .d_logits = d_logits_d},
                   {&losses_d, &d_logits_d});
  const std::vector<double> exact = values_as<double>(logits);
  const std::vector<float> plain = values_as<float>(logits);
  expect_twice(losses, reference_losses(exact, n, where), reference_losses(plain, n, where),
               "losses");
  expect_twice(d_logits, reference_gradients(exact, n, where, scale),
               reference_gradients(plain, n, where, scale), "d_logits");
}

// Rows that shared memory holds and longer ones, aligned and not.
INSTANTIATE_TEST_SUITE_P(
    Shapes, Loss,
    ::testing::Combine(every_device(),
                       ::testing::Values(RowsCase{f32, 70, 257}, RowsCase{f32, 11, 8192},
                                         RowsCase{f32, 6, 49152}, RowsCase{b16, 6, 8209},
                                         RowsCase{b16, 6, 24576})),
    device_test_name<RowsCase>);

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

using AdamWSteps = DeviceTest<int>;  // the number of weights

TEST_P(AdamWSteps, ErrAtMostTwiceAsMuchAsThePlainFormula) {
  const std::int64_t size = parameter();
  const AdamWHyper h;
  Guarded w = random_normal(f32, {size}, 1), m = zeros(f32, {size}), v = m;
  AdamWState<double> exact{values_as<double>(w), values_as<double>(m), values_as<double>(v)};
  AdamWState<float> plain{values_as<float>(w), values_as<float>(m), values_as<float>(v)};
  OnDevice w_d = on_device(w), m_d = on_device(m), v_d = on_device(v);
  for (int t = 1; t <= 20; ++t) {
    Guarded g = random_normal(f32, {size}, 10 + static_cast<unsigned>(t));
    OnDevice g_d = on_device(g);
    run_and_download(stream(),
                     AdamW{.weights = w_d,
                           .gradients = g_d,
                           .m = m_d,
                           .v = v_d,
                           .gradient_scale = static_cast<float>(h.scale),
                           .lr = static_cast<float>(h.lr),
                           .beta1 = static_cast<float>(h.beta1),
                           .beta2 = static_cast<float>(h.beta2),
                           .epsilon = static_cast<float>(h.epsilon),
                           .weight_decay = static_cast<float>(h.decay),
                           .step = t},
                     {&w_d, &m_d, &v_d});
    adamw_reference(exact, values_as<double>(g), h, t);
    adamw_reference(plain, values_as<float>(g), h, t);
    SCOPED_TRACE(t);
    expect_twice(w, exact.w, plain.w, "weights");
    expect_twice(m, exact.m, plain.m, "m");
    expect_twice(v, exact.v, plain.v, "v");
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, AdamWSteps,
                         ::testing::Combine(every_device(), ::testing::Values(1009)),
                         device_test_name<int>);

}  // namespace
}  // namespace orchard::testing
