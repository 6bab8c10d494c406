// AdaFactor against an fp64 reference, step after step, factored and not.
#include "kernels/optimizer/optimizer.h"
#include "tests/kernels/adafactor_reference.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"

namespace orchard::testing {
namespace {

using Hyper = AdaFactorHyper;

AdaFactor operation(OnDevice& w, OnDevice& g, OnDevice& copy, OnDevice& scale, const Hyper& h,
                    int t) {
  return {.weights = w,
          .gradients = g,
          .copy = copy,
          .gradient_scale = scale,
          .lr = static_cast<float>(h.lr),
          .clip_threshold = static_cast<float>(h.clip),
          .weight_decay = static_cast<float>(h.decay),
          .step = t};
}

void expect_rounded_copy(const Guarded& w, const Guarded& copy) {
  for (std::int64_t i = 0; i < w.size(); ++i) {
    ASSERT_EQ(copy.at(i), to_float(to_bf16(static_cast<float>(w.at(i))))) << i;
  }
}

struct Case {
  std::int64_t rows, cols;
  int shift = 0;  // elements by which the copy lies off alignment
};

class AdaFactorSteps : public DeviceTest<Case> {
 protected:
  // Sums of `rows` or `cols` squares in fp32, and a handful of roundings a step.
  double bound(int t) const {
    const auto [rows, cols, shift] = parameter();
    return t * (8 + 4 * std::sqrt(std::max(rows, cols))) * unit_roundoff(DType::f32);
  }
};

TEST_P(AdaFactorSteps, FactoredFollowsTheReference) {
  const auto [rows, cols, shift] = parameter();
  const Hyper h;
  Guarded scale = number(h.scale);
  OnDevice scale_d = on_device(scale);
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), copy(DType::bf16, {rows, cols});
  Guarded v_row = zeros(DType::f32, {rows}), v_col = zeros(DType::f32, {cols});
  OnDevice w_d = on_device(w), copy_d = on_device(copy, shift);
  OnDevice v_row_d = on_device(v_row), v_col_d = on_device(v_col);
  FactoredAdaFactor<double> state{w.values(), v_row.values(), v_col.values()};
  for (int t = 1; t <= 3; ++t) {
    Guarded g = adafactor_gradient(rows, cols, t);
    OnDevice g_d = on_device(g);
    AdaFactor op = operation(w_d, g_d, copy_d, scale_d, h, t);
    op.v_row = v_row_d.tensor(), op.v_col = v_col_d.tensor();
    run_repeatedly(stream(), op, {&w_d, &v_row_d, &v_col_d, &copy_d});
    if (w.size() == 0) continue;
    state.step(g.values(), h, t);
    expect_close(v_row, state.v_row, bound(t), "v_row");
    expect_close(v_col, state.v_col, bound(t), "v_col");
    expect_close(w, state.w, bound(t), "weights");
    expect_rounded_copy(w, copy);
  }
}

TEST_P(AdaFactorSteps, UnfactoredFollowsTheReference) {
  const auto [rows, cols, shift] = parameter();
  const Hyper h;
  Guarded scale = number(h.scale);
  OnDevice scale_d = on_device(scale);
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), copy(DType::bf16, {rows, cols});
  Guarded v = zeros(DType::f32, {rows, cols});
  OnDevice w_d = on_device(w), copy_d = on_device(copy, shift), v_d = on_device(v);
  FullAdaFactor<double> state{w.values(), v.values()};
  for (int t = 1; t <= 3; ++t) {
    Guarded g = adafactor_gradient(rows, cols, t);
    OnDevice g_d = on_device(g);
    AdaFactor op = operation(w_d, g_d, copy_d, scale_d, h, t);
    op.v = v_d.tensor();
    run_repeatedly(stream(), op, {&w_d, &v_d, &copy_d});
    if (w.size() == 0) continue;
    state.step(g.values(), h, t);
    expect_close(v, state.v, bound(t), "v");
    expect_close(w, state.w, bound(t), "weights");
    expect_rounded_copy(w, copy);
  }
}

// A rank's part of a block, cut out of it and put back.
class Part {
 public:
  Part(std::int64_t rows, std::int64_t cols, std::int64_t first_row, std::int64_t first_col)
      : rows_(rows), cols_(cols), first_row_(first_row), first_col_(first_col) {}

  std::int64_t first_col() const { return first_col_; }
  Shape shape() const { return {rows_, cols_}; }
  Guarded of(const Guarded& block) const {
    Guarded part(block.dtype(), shape());
    for (std::int64_t i = 0; i < part.size(); ++i) part.set(i, block.at(index(block, i)));
    return part;
  }
  void put(const Guarded& part, Guarded& block) const {
    for (std::int64_t i = 0; i < part.size(); ++i) block.set(index(block, i), part.at(i));
  }
  Guarded rows_of(const Guarded& column) const {
    Guarded part(DType::f32, {rows_});
    for (std::int64_t i = 0; i < rows_; ++i) part.set(i, column.at(first_row_ + i));
    return part;
  }
  void put_rows(const Guarded& part, Guarded& column) const {
    for (std::int64_t i = 0; i < rows_; ++i) column.set(first_row_ + i, part.at(i));
  }
  void add_sums(const Guarded& rows, const Guarded& cols, Guarded& all_rows,
                Guarded& all_cols) const {
    for (std::int64_t i = 0; i < rows_; ++i)
      all_rows.set(first_row_ + i, all_rows.at(first_row_ + i) + rows.at(i));
    for (std::int64_t i = 0; i < cols_; ++i)
      all_cols.set(first_col_ + i, all_cols.at(first_col_ + i) + cols.at(i));
  }

 private:
  std::int64_t index(const Guarded& block, std::int64_t i) const {
    return (first_row_ + i / cols_) * block.shape()[1] + first_col_ + i % cols_;
  }
  std::int64_t rows_, cols_, first_row_, first_col_;
};

// Three ranks share the rows, one of them with none, and two the columns.
std::vector<Part> parts_of(std::int64_t rows, std::int64_t cols) {
  std::vector<Part> parts;
  const std::int64_t row_edges[] = {0, rows / 3, rows / 3, rows}, col_edges[] = {0, cols / 2, cols};
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 2; ++c)
      parts.emplace_back(row_edges[r + 1] - row_edges[r], col_edges[c + 1] - col_edges[c],
                         row_edges[r], col_edges[c]);
  return parts;
}

TEST_P(AdaFactorSteps, InPartsFactoredFollowsTheReference) {
  const auto [rows, cols, shift] = parameter();
  if (rows * cols == 0) GTEST_SKIP() << "parts of nothing have no mean";
  const Hyper h;
  Guarded scale = number(h.scale);
  OnDevice scale_d = on_device(scale);
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), copy(DType::bf16, {rows, cols});
  Guarded v_row = zeros(DType::f32, {rows}), v_col = zeros(DType::f32, {cols});
  FactoredAdaFactor<double> state{w.values(), v_row.values(), v_col.values()};
  for (int t = 1; t <= 3; ++t) {
    const Guarded g = adafactor_gradient(rows, cols, t);
    Guarded all_rows = zeros(DType::f32, {rows}), all_cols = zeros(DType::f32, {cols});
    for (const Part& part : parts_of(rows, cols)) {
      Guarded own = part.of(g), row_sums(DType::f32, {part.shape()[0]}),
              col_sums(DType::f32, {part.shape()[1]});
      OnDevice own_d = on_device(own), row_sums_d = on_device(row_sums),
               col_sums_d = on_device(col_sums);
      run_repeatedly(stream(),
                     AdaFactorSums{.gradients = own_d,
                                   .row_sums = row_sums_d,
                                   .col_sums = col_sums_d,
                                   .gradient_scale = scale_d},
                     {&row_sums_d, &col_sums_d});
      part.add_sums(row_sums, col_sums, all_rows, all_cols);
    }
    double squares = 0;
    const Guarded v_row_before = v_row, v_col_before = v_col;
    for (const Part& part : parts_of(rows, cols)) {
      Guarded own = part.of(g), own_sums = part.rows_of(all_rows),
              own_rows = part.rows_of(v_row_before), own_cols = v_col_before;
      Guarded measured(DType::f32, {1});
      OnDevice own_d = on_device(own), own_sums_d = on_device(own_sums),
               all_cols_d = on_device(all_cols), own_rows_d = on_device(own_rows),
               own_cols_d = on_device(own_cols), measured_d = on_device(measured);
      run_repeatedly(stream(),
                     AdaFactorMeasure{.gradients = own_d,
                                      .row_sums = own_sums_d,
                                      .col_sums = all_cols_d,
                                      .v_row = own_rows_d,
                                      .v_col = own_cols_d,
                                      .squares = measured_d,
                                      .rows = rows,
                                      .first_col = part.first_col(),
                                      .gradient_scale = scale_d,
                                      .step = t},
                     {&own_rows_d, &own_cols_d, &measured_d});
      part.put_rows(own_rows, v_row);
      v_col = own_cols;
      squares += measured.at(0);
    }
    Guarded all_squares = number(squares);
    OnDevice all_squares_d = on_device(all_squares);
    for (const Part& part : parts_of(rows, cols)) {
      Guarded own = part.of(g), own_w = part.of(w), own_copy = part.of(copy),
              own_rows = part.rows_of(v_row);
      OnDevice own_d = on_device(own), own_w_d = on_device(own_w),
               own_copy_d = on_device(own_copy, shift), own_rows_d = on_device(own_rows),
               v_col_d = on_device(v_col);
      run_repeatedly(stream(),
                     AdaFactorApply{.weights = own_w_d,
                                    .gradients = own_d,
                                    .v_row = own_rows_d,
                                    .v_col = v_col_d,
                                    .copy = own_copy_d,
                                    .squares = all_squares_d,
                                    .count = rows * cols,
                                    .first_col = part.first_col(),
                                    .gradient_scale = scale_d,
                                    .lr = h.lr,
                                    .clip_threshold = h.clip,
                                    .weight_decay = static_cast<float>(h.decay)},
                     {&own_w_d, &own_copy_d});
      part.put(own_w, w);
      part.put(own_copy, copy);
    }
    state.step(g.values(), h, t);
    expect_close(v_row, state.v_row, bound(t), "v_row");
    expect_close(v_col, state.v_col, bound(t), "v_col");
    expect_close(w, state.w, bound(t), "weights");
    expect_rounded_copy(w, copy);
  }
}

TEST_P(AdaFactorSteps, InPartsUnfactoredFollowsTheReference) {
  const auto [rows, cols, shift] = parameter();
  if (rows * cols == 0) GTEST_SKIP() << "parts of nothing have no mean";
  const Hyper h;
  Guarded scale = number(h.scale);
  OnDevice scale_d = on_device(scale);
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), v = zeros(DType::f32, {rows, cols});
  FullAdaFactor<double> state{w.values(), v.values()};
  for (int t = 1; t <= 3; ++t) {
    const Guarded g = adafactor_gradient(rows, cols, t);
    double squares = 0;
    for (const Part& part : parts_of(rows, cols)) {
      Guarded own = part.of(g), own_v = part.of(v), measured(DType::f32, {1});
      OnDevice own_d = on_device(own), own_v_d = on_device(own_v), measured_d = on_device(measured);
      run_repeatedly(stream(),
                     AdaFactorMeasure{.gradients = own_d,
                                      .v = own_v_d,
                                      .squares = measured_d,
                                      .gradient_scale = scale_d,
                                      .step = t},
                     {&own_v_d, &measured_d});
      part.put(own_v, v);
      squares += measured.at(0);
    }
    Guarded all_squares = number(squares);
    OnDevice all_squares_d = on_device(all_squares);
    for (const Part& part : parts_of(rows, cols)) {
      Guarded own = part.of(g), own_v = part.of(v), own_w = part.of(w);
      OnDevice own_d = on_device(own), own_v_d = on_device(own_v), own_w_d = on_device(own_w);
      run_repeatedly(stream(),
                     AdaFactorApply{.weights = own_w_d,
                                    .gradients = own_d,
                                    .v = own_v_d,
                                    .squares = all_squares_d,
                                    .count = rows * cols,
                                    .gradient_scale = scale_d,
                                    .lr = h.lr,
                                    .clip_threshold = h.clip,
                                    .weight_decay = static_cast<float>(h.decay)},
                     {&own_w_d});
      part.put(own_w, w);
    }
    state.step(g.values(), h, t);
    expect_close(v, state.v, bound(t), "v");
    expect_close(w, state.w, bound(t), "weights");
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AdaFactorSteps,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(Case{1, 1}, Case{1, 17}, Case{17, 1},
                                                              Case{65, 31}, Case{131, 257},
                                                              Case{1030, 33}, Case{70, 260},
                                                              Case{9, 64, 1}, Case{0, 4})),
                         device_test_name<Case>);

using AdaFactorLimits = DeviceTest<Case>;

// From zero statistics a late step takes in t^-0.8 of the squares. As 1 - β₂ in fp32, that share
// would be wrong by one part in 2000 here.
TEST_P(AdaFactorLimits, ALateStepKeepsTheDigitsOfASmallShare) {
  const std::int64_t cols = parameter().cols;
  Guarded w = zeros(DType::f32, {1, cols}), g = random_normal(DType::f32, {1, cols}, 1), v = w;
  Guarded v_row = zeros(DType::f32, {1}), v_col = zeros(DType::f32, {cols});
  OnDevice w_d = on_device(w), g_d = on_device(g), v_d = on_device(v);
  OnDevice v_row_d = on_device(v_row), v_col_d = on_device(v_col);
  run_and_download(stream(), AdaFactor{.weights = w_d, .gradients = g_d, .v = v_d, .step = 200'000},
                   {&v_d});
  run_and_download(
      stream(),
      AdaFactor{
          .weights = w_d, .gradients = g_d, .v_row = v_row_d, .v_col = v_col_d, .step = 200'000},
      {&v_col_d});
  for (std::int64_t i = 0; i < cols; ++i) {
    const double expected = std::pow(200'000, -0.8) * g.at(i) * g.at(i);
    EXPECT_NEAR(v.at(i), expected, 8 * unit_roundoff(DType::f32) * expected);
    EXPECT_NEAR(v_col.at(i), expected, 8 * unit_roundoff(DType::f32) * expected);
  }
}

TEST_P(AdaFactorLimits, TheFirstStepOfAnUnfactoredBlockMovesEachWeightByTheLearningRate) {
  const std::int64_t size = parameter().cols;
  Guarded w = zeros(DType::f32, {size}), v = w, g = random_normal(DType::f32, {size}, 1);
  OnDevice w_d = on_device(w), g_d = on_device(g), v_d = on_device(v);
  run_and_download(stream(),
                   AdaFactor{.weights = w_d, .gradients = g_d, .v = v_d, .lr = 0.25f, .step = 1},
                   {&w_d});
  // β₂ = 0 makes u = ±1, up to a few roundoffs of 6e-8, whose rms of 1 does not clip.
  for (std::int64_t i = 0; i < size; ++i) EXPECT_NEAR(w.at(i), g.at(i) > 0 ? -0.25 : 0.25, 1e-6);
}

TEST_P(AdaFactorLimits, ZeroGradientsOnlyDecay) {
  const auto [rows, cols, shift] = parameter();
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), g = zeros(DType::f32, {rows, cols});
  const Guarded before = w;
  Guarded v_row = zeros(DType::f32, {rows}), v_col = zeros(DType::f32, {cols});
  OnDevice w_d = on_device(w), g_d = on_device(g);
  OnDevice v_row_d = on_device(v_row), v_col_d = on_device(v_col);
  run_and_download(stream(),
                   AdaFactor{.weights = w_d,
                             .gradients = g_d,
                             .v_row = v_row_d,
                             .v_col = v_col_d,
                             .lr = 0.25f,
                             .weight_decay = 0.5f,
                             .step = 1},
                   {&w_d});
  for (std::int64_t i = 0; i < w.size(); ++i) ASSERT_EQ(w.at(i), 0.5 * before.at(i));
}

// A weight moves by about a thousandth of itself, and each of its two terms may be off by 64 roundoffs of
// its own: what the sums and roots lose. That is far less than a second rounding of the weight's size.
void expect_rounded_once(const Guarded& w, const Guarded& before, const std::vector<double>& exact,
                         const Hyper& h, const char* what) {
  for (std::int64_t i = 0; i < w.size(); ++i) {
    const double wanted = exact[static_cast<std::size_t>(i)], decay = h.decay * before.at(i);
    const double terms = std::abs(before.at(i) - wanted - decay) + std::abs(decay);
    const double half_ulp = std::ldexp(unit_roundoff(DType::f32), std::ilogb(wanted));
    ASSERT_LE(std::abs(w.at(i) - wanted), half_ulp + 64 * unit_roundoff(DType::f32) * terms)
        << what << "[" << i << "]";
  }
}

TEST_P(AdaFactorLimits, ASmallStepRoundsAWeightOnce) {
  const auto [rows, cols, shift] = parameter();
  // Does not clip, whatever the squares are.
  const Hyper h{.lr = 1e-4f, .clip = 1e3, .decay = 1e-3f};
  Guarded scale = number(h.scale), squares = number(0);
  OnDevice scale_d = on_device(scale), squares_d = on_device(squares);
  const Guarded before = random_normal(DType::f32, {rows, cols}, 1);
  Guarded w = before, g = adafactor_gradient(rows, cols, 1), copy(DType::bf16, {rows, cols});
  Guarded v_row = zeros(DType::f32, {rows}), v_col = zeros(DType::f32, {cols});
  Guarded v = zeros(DType::f32, {rows, cols});
  OnDevice w_d = on_device(w), g_d = on_device(g), copy_d = on_device(copy), v_d = on_device(v);
  OnDevice v_row_d = on_device(v_row), v_col_d = on_device(v_col);
  AdaFactor whole = operation(w_d, g_d, copy_d, scale_d, h, 1);
  // As in parts, of the statistics that `whole` left.
  AdaFactorApply apply{.weights = w_d,
                       .gradients = g_d,
                       .squares = squares_d,
                       .count = rows * cols,
                       .gradient_scale = scale_d,
                       .lr = h.lr,
                       .clip_threshold = h.clip,
                       .weight_decay = static_cast<float>(h.decay)};
  const auto expect = [&](const auto& op, const std::vector<double>& exact, const char* what) {
    w = before;
    run_and_download(stream(), op, {&w_d});
    expect_rounded_once(w, before, exact, h, what);
  };
  FactoredAdaFactor<double> factored{before.values(), v_row.values(), v_col.values()};
  factored.step(g.values(), h, 1);
  whole.v_row = v_row_d.tensor(), whole.v_col = v_col_d.tensor();
  apply.v_row = v_row_d.tensor(), apply.v_col = v_col_d.tensor();
  expect(whole, factored.w, "factored");
  expect(apply, factored.w, "factored, in parts");

  FullAdaFactor<double> full{before.values(), v.values()};
  full.step(g.values(), h, 1);
  whole.v_row = whole.v_col = {}, whole.v = v_d.tensor();
  apply.v_row = apply.v_col = {}, apply.v = v_d.tensor();
  expect(whole, full.w, "unfactored");
  expect(apply, full.w, "unfactored, in parts");
}

TEST_P(AdaFactorLimits, AScaleThatIsNotFiniteChangesNoBit) {
  const auto [rows, cols, shift] = parameter();
  const Hyper h;
  // Of any earlier step.
  Guarded w = random_normal(DType::f32, {rows, cols}, 1),
          copy = random_normal(DType::bf16, {rows, cols}, 2);
  Guarded v_row = random_normal(DType::f32, {rows}, 3, 0.1, 2),
          v_col = random_normal(DType::f32, {cols}, 4, 0.1, 2);
  Guarded v = random_normal(DType::f32, {rows, cols}, 5, 0.1, 2),
          g = adafactor_gradient(rows, cols, 1);
  Guarded row_sums = v_row, col_sums = v_col, measured = number(0), squares = number(1);
  const std::initializer_list<Guarded*> states = {&w, &copy, &v_row, &v_col, &v};
  std::vector<Guarded> before;
  for (const Guarded* state : states) before.push_back(*state);
  OnDevice w_d = on_device(w), copy_d = on_device(copy), v_row_d = on_device(v_row),
           v_col_d = on_device(v_col), v_d = on_device(v);
  OnDevice row_sums_d = on_device(row_sums), col_sums_d = on_device(col_sums),
           measured_d = on_device(measured), squares_d = on_device(squares);
  const auto expect_unchanged = [&](const auto& op, const char* what) {
    run_and_download(stream(), op, {&w_d, &copy_d, &v_row_d, &v_col_d, &v_d});
    auto kept = before.begin();
    for (const Guarded* state : states)
      EXPECT_TRUE(*state == *kept++) << what << ", " << kept - before.begin() << ". state";
  };
  for (const double gradient : {1.0, std::nan(""), HUGE_VAL}) {
    for (const double factor : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      SCOPED_TRACE(fmt::format("a gradient of {}, scale {}", gradient, factor));
      g.set(g.size() / 2, gradient);
      Guarded scale = number(factor);
      OnDevice g_d = on_device(g), scale_d = on_device(scale);
      AdaFactor whole = operation(w_d, g_d, copy_d, scale_d, h, 2);
      AdaFactorMeasure measure{.gradients = g_d,
                               .squares = measured_d,
                               .rows = rows,
                               .gradient_scale = scale_d,
                               .step = 2};
      AdaFactorApply apply{.weights = w_d,
                           .gradients = g_d,
                           .copy = copy_d,
                           .squares = squares_d,
                           .count = rows * cols,
                           .gradient_scale = scale_d,
                           .lr = h.lr,
                           .weight_decay = static_cast<float>(h.decay)};
      whole.v = measure.v = v_d.tensor(), apply.v = v_d;
      expect_unchanged(whole, "unfactored");
      expect_unchanged(measure, "the unfactored measure");
      expect_unchanged(apply, "unfactored, in parts");
      whole.v = measure.v = {}, apply.v = {};
      whole.v_row = measure.v_row = v_row_d.tensor(), apply.v_row = v_row_d;
      whole.v_col = measure.v_col = v_col_d.tensor(), apply.v_col = v_col_d;
      measure.row_sums = row_sums_d, measure.col_sums = col_sums_d;
      expect_unchanged(whole, "factored");
      expect_unchanged(measure, "the factored measure");
      expect_unchanged(apply, "factored, in parts");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AdaFactorLimits,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(Case{40, 40}, Case{33, 33})),
                         device_test_name<Case>);

TEST(AdaFactorErrors, StatisticsThatDoNotFitAreNamed) {
  Guarded w = zeros(DType::f32, {4, 3}), row = zeros(DType::f32, {4}), v = w;
  EXPECT_EQ(error_of(AdaFactor{.weights = w, .gradients = w, .v_row = row, .v_col = row}),
            "AdaFactor: v_col has shape [4], expected [3]");
  EXPECT_EQ(error_of(AdaFactor{.weights = w, .gradients = w, .v_row = row, .v = v}),
            "AdaFactor: either v is given, or v_row and v_col");
}

}  // namespace
}  // namespace orchard::testing
