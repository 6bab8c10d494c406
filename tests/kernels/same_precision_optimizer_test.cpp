// Optimizers and the sums over gradients: their errors are at most twice those of the same formula in the
// same precision (same_precision.h). On a GPU of any architecture they are the kernels of sm_80.
#include "kernels/elementwise/elementwise.h"
#include "tests/kernels/adafactor_reference.h"
#include "tests/kernels/adamw_reference.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/same_precision.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

using AdamWSteps = DeviceTest<int>;  // the number of weights

TEST_P(AdamWSteps, ErrAtMostTwiceAsMuchAsThePlainFormula) {
  const std::int64_t size = parameter();
  const AdamWHyper h;
  Guarded scale = number(h.scale);
  OnDevice scale_d = on_device(scale);
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
                           .gradient_scale = scale_d,
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

enum class Clips : std::uint8_t { never, always };
enum class Start : std::uint8_t {
  at_zero,    // nothing hides what the update loses
  at_random,  // the weight's own roundings are the most of it; adafactor_test counts those
};

struct AdaFactorCase {
  std::int64_t rows, cols;
  Clips clips;
  Start start;

  AdaFactorHyper hyper() const {
    // Raw updates have an rms of one or more.
    return {.lr = start == Start::at_zero ? 1 : 1e-2, .clip = clips == Clips::always ? 0.5 : 1e3};
  }
  Guarded weights() const {
    return start == Start::at_zero ? zeros(f32, {rows, cols}) : random_normal(f32, {rows, cols}, 1);
  }
};

// One launch of all, or the parts that ranks share, as a rank that has the whole block runs them.
enum class Pieces : std::uint8_t { one, parts };

class AdaFactorSteps : public DeviceTest<AdaFactorCase> {
 protected:
  void check_factored(Pieces pieces) const {
    const auto [rows, cols, clips, start] = parameter();
    Guarded w = parameter().weights(), v_row = zeros(f32, {rows}), v_col = zeros(f32, {cols});
    OnDevice w_d = on_device(w), v_row_d = on_device(v_row), v_col_d = on_device(v_col);
    FactoredAdaFactor<double> exact{w.values(), v_row.values(), v_col.values()};
    FactoredAdaFactor<float> plain{values_as<float>(w), values_as<float>(v_row),
                                   values_as<float>(v_col)};
    for (int t = 1; t <= 4; ++t) {
      Guarded g = adafactor_gradient(rows, cols, t), row_sums = v_row, col_sums = v_col;
      OnDevice g_d = on_device(g), row_sums_d = on_device(row_sums);
      OnDevice col_sums_d = on_device(col_sums);
      AdaFactor whole{.weights = w_d, .gradients = g_d, .v_row = v_row_d, .v_col = v_col_d};
      AdaFactorMeasure measure{.gradients = g_d,
                               .row_sums = row_sums_d,
                               .col_sums = col_sums_d,
                               .v_row = v_row_d,
                               .v_col = v_col_d,
                               .rows = rows};
      AdaFactorApply apply{.weights = w_d, .gradients = g_d, .v_row = v_row_d, .v_col = v_col_d};
      if (pieces == Pieces::parts) {
        Guarded scale = number(hyper().scale);
        OnDevice scale_d = on_device(scale);
        run(stream(), AdaFactorSums{.gradients = g_d,
                                    .row_sums = row_sums_d,
                                    .col_sums = col_sums_d,
                                    .gradient_scale = scale_d});
        stream().synchronize();  // scale_d goes
      }
      step(pieces, whole, measure, apply, t);
      for (OnDevice* const result : {&w_d, &v_row_d, &v_col_d}) result->download();
      stream().synchronize();
      exact.step(g.values(), hyper(), t);
      plain.step(values_as<float>(g), hyper(), t);
      SCOPED_TRACE(t);
      expect_twice(v_row, exact.v_row, plain.v_row, "v_row");
      expect_twice(v_col, exact.v_col, plain.v_col, "v_col");
      expect_twice(w, exact.w, plain.w, "weights");
    }
  }

  void check_full(Pieces pieces) const {
    const auto [rows, cols, clips, start] = parameter();
    Guarded w = parameter().weights(), v = zeros(f32, {rows, cols});
    OnDevice w_d = on_device(w), v_d = on_device(v);
    FullAdaFactor<double> exact{w.values(), v.values()};
    FullAdaFactor<float> plain{values_as<float>(w), values_as<float>(v)};
    for (int t = 1; t <= 4; ++t) {
      Guarded g = adafactor_gradient(rows, cols, t);
      OnDevice g_d = on_device(g);
      AdaFactor whole{.weights = w_d, .gradients = g_d, .v = v_d};
      AdaFactorMeasure measure{.gradients = g_d, .v = v_d};
      AdaFactorApply apply{.weights = w_d, .gradients = g_d, .v = v_d};
      step(pieces, whole, measure, apply, t);
      for (OnDevice* const result : {&w_d, &v_d}) result->download();
      stream().synchronize();
      exact.step(g.values(), hyper(), t);
      plain.step(values_as<float>(g), hyper(), t);
      SCOPED_TRACE(t);
      expect_twice(v, exact.v, plain.v, "v");
      expect_twice(w, exact.w, plain.w, "weights");
    }
  }

 private:
  AdaFactorHyper hyper() const { return parameter().hyper(); }

  // Operands are the operations' own, all else is set here.
  void step(Pieces pieces, AdaFactor& whole, AdaFactorMeasure& measure, AdaFactorApply& apply,
            int t) const {
    const AdaFactorHyper h = hyper();
    Guarded scale = number(h.scale), squares(f32, {1});
    OnDevice scale_d = on_device(scale), squares_d = on_device(squares);
    whole.gradient_scale = measure.gradient_scale = apply.gradient_scale = scale_d.tensor();
    whole.weight_decay = apply.weight_decay = static_cast<float>(h.decay);
    whole.step = measure.step = t;
    if (pieces == Pieces::one) {
      whole.lr = static_cast<float>(h.lr);
      whole.clip_threshold = static_cast<float>(h.clip);
      run(stream(), whole);
    } else {
      measure.squares = squares_d.tensor();
      run(stream(), measure);
      apply.squares = squares_d.tensor();
      apply.count = apply.weights.numel();
      apply.lr = h.lr;
      apply.clip_threshold = h.clip;
      run(stream(), apply);
    }
    stream().synchronize();  // scale_d and squares_d go
  }
};

TEST_P(AdaFactorSteps, FactoredErrAtMostTwiceAsMuchAsThePlainFormula) {
  check_factored(Pieces::one);
}
TEST_P(AdaFactorSteps, FactoredInPartsErrAtMostTwiceAsMuchAsThePlainFormula) {
  check_factored(Pieces::parts);
}
TEST_P(AdaFactorSteps, UnfactoredErrAtMostTwiceAsMuchAsThePlainFormula) {
  check_full(Pieces::one);
}
TEST_P(AdaFactorSteps, UnfactoredInPartsErrAtMostTwiceAsMuchAsThePlainFormula) {
  check_full(Pieces::parts);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AdaFactorSteps,
    ::testing::Combine(every_device(),
                       ::testing::Values(AdaFactorCase{65, 31, Clips::never, Start::at_zero},
                                         AdaFactorCase{65, 31, Clips::always, Start::at_zero},
                                         AdaFactorCase{130, 260, Clips::never, Start::at_random},
                                         AdaFactorCase{70, 260, Clips::always, Start::at_random},
                                         AdaFactorCase{1030, 33, Clips::never, Start::at_zero})),
    device_test_name<AdaFactorCase>);

struct SumCase {
  DType dtype;
  std::int64_t rows, cols;
};

using ColumnSums = DeviceTest<SumCase>;

TEST_P(ColumnSums, ErrAtMostTwiceAsMuchAsPlainSums) {
  const auto [dtype, rows, cols] = parameter();
  Guarded x = random_normal(dtype, {rows, cols}, 1), y = random_normal(f32, {cols}, 2);
  std::vector<double> exact = values_as<double>(y);
  std::vector<float> plain = values_as<float>(y);
  for (std::int64_t i = 0; i < x.size(); ++i) {
    const auto col = static_cast<std::size_t>(i % cols);
    exact[col] += x.at(i);
    plain[col] += static_cast<float>(x.at(i));
  }
  OnDevice x_d = on_device(x), y_d = on_device(y);
  run_and_download(stream(), ColumnSum{.x = x_d, .y = y_d}, {&y_d});
  expect_twice(y, exact, plain, "y");
}

INSTANTIATE_TEST_SUITE_P(Shapes, ColumnSums,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(SumCase{f32, 65, 17},
                                                              SumCase{f32, 1031, 132},
                                                              SumCase{b16, 2049, 40})),
                         device_test_name<SumCase>);

using SumsOfSquares = DeviceTest<std::int64_t>;  // the number of terms

TEST_P(SumsOfSquares, ErrAtMostTwiceAsMuchAsPlainSums) {
  Guarded x = random_normal(f32, {parameter()}, 1), result(f32, {1});
  double exact = 0;
  float plain = 0;
  for (std::int64_t i = 0; i < x.size(); ++i) {
    exact += x.at(i) * x.at(i);
    plain += static_cast<float>(x.at(i)) * static_cast<float>(x.at(i));
  }
  OnDevice x_d = on_device(x), result_d = on_device(result);
  run_and_download(stream(), SumOfSquares{.x = x_d, .result = result_d}, {&result_d});
  expect_twice(result, {exact}, {plain}, "sum");
}

INSTANTIATE_TEST_SUITE_P(Sizes, SumsOfSquares,
                         ::testing::Combine(every_device(),
                                            ::testing::Values<std::int64_t>(3, 17, 5003)),
                         device_test_name<std::int64_t>);

}  // namespace
}  // namespace orchard::testing
