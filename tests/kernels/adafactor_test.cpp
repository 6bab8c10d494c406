// AdaFactor against an fp64 reference, step after step, factored and not.
#include <numeric>

#include "kernels/optimizer/optimizer.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"

namespace orchard::testing {
namespace {

using Values = std::vector<double>;

struct Hyper {
  double lr = 1e-2, clip = 1, decay = 0.01f, scale = 0.5;
};

double mean(const Values& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Steps 2 to 7 of the chain: clip the block, multiply by the learning rate, decay, subtract.
void apply(Values& w, Values update, const Hyper& h) {
  Values squares = update;
  for (double& s : squares) s *= s;
  const double clip = std::max(1.0, std::sqrt(mean(squares)) / h.clip);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] -= h.lr * update[i] / clip + h.decay * w[i];
}

double second_moment_decay(int t) {
  return 1 - std::pow(t, -0.8);
}

struct Factored {
  Values w, v_row, v_col;

  void step(const Values& gradients, const Hyper& h, int t) {
    const std::size_t rows = v_row.size(), cols = v_col.size();
    const double beta = second_moment_decay(t);
    Values row_means(rows), col_means(cols), update(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double square = std::pow(gradients[i] * h.scale, 2) + 1e-30;
      row_means[i / cols] += square / static_cast<double>(cols);
      col_means[i % cols] += square / static_cast<double>(rows);
    }
    for (std::size_t r = 0; r < rows; ++r) v_row[r] = beta * v_row[r] + (1 - beta) * row_means[r];
    for (std::size_t c = 0; c < cols; ++c) v_col[c] = beta * v_col[c] + (1 - beta) * col_means[c];
    for (std::size_t i = 0; i < w.size(); ++i) {
      update[i] = gradients[i] * h.scale / std::sqrt(v_row[i / cols] / mean(v_row)) /
                  std::sqrt(v_col[i % cols]);
    }
    apply(w, update, h);
  }
};

struct Full {
  Values w, v;

  void step(const Values& gradients, const Hyper& h, int t) {
    const double beta = second_moment_decay(t);
    Values update(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double g = gradients[i] * h.scale;
      v[i] = beta * v[i] + (1 - beta) * (g * g + 1e-30);
      update[i] = g / std::sqrt(v[i]);
    }
    apply(w, update, h);
  }
};

// Gradients whose rows and columns differ in size, growing with t so that clipping sets in after
// the first step.
Guarded gradient(std::int64_t rows, std::int64_t cols, int t) {
  Guarded g = random_normal(DType::f32, {rows, cols}, 10 + static_cast<unsigned>(t));
  for (std::int64_t i = 0; i < g.size(); ++i) {
    g.set(i, g.at(i) * std::pow(4.0, t) * (1 + static_cast<double>(i / cols % 3)) *
                 (1 + static_cast<double>(i % cols % 5)));
  }
  return g;
}

AdaFactor operation(OnDevice& w, OnDevice& g, OnDevice& copy, const Hyper& h, int t) {
  return {.weights = w,
          .gradients = g,
          .copy = copy,
          .gradient_scale = static_cast<float>(h.scale),
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
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), copy(DType::bf16, {rows, cols});
  Guarded v_row = zeros(DType::f32, {rows}), v_col = zeros(DType::f32, {cols});
  OnDevice w_d = on_device(w), copy_d = on_device(copy, shift);
  OnDevice v_row_d = on_device(v_row), v_col_d = on_device(v_col);
  Factored state{w.values(), v_row.values(), v_col.values()};
  for (int t = 1; t <= 3; ++t) {
    Guarded g = gradient(rows, cols, t);
    OnDevice g_d = on_device(g);
    AdaFactor op = operation(w_d, g_d, copy_d, h, t);
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
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), copy(DType::bf16, {rows, cols});
  Guarded v = zeros(DType::f32, {rows, cols});
  OnDevice w_d = on_device(w), copy_d = on_device(copy, shift), v_d = on_device(v);
  Full state{w.values(), v.values()};
  for (int t = 1; t <= 3; ++t) {
    Guarded g = gradient(rows, cols, t);
    OnDevice g_d = on_device(g);
    AdaFactor op = operation(w_d, g_d, copy_d, h, t);
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

float clipped_lr(const Hyper& h, double squares, std::int64_t elements) {
  const double rms = std::sqrt(squares / static_cast<double>(elements));
  return static_cast<float>(h.lr / std::max(1.0, rms / h.clip));
}

TEST_P(AdaFactorSteps, InPartsFactoredFollowsTheReference) {
  const auto [rows, cols, shift] = parameter();
  if (rows * cols == 0) GTEST_SKIP() << "parts of nothing have no mean";
  const Hyper h;
  const auto scale = static_cast<float>(h.scale);
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), copy(DType::bf16, {rows, cols});
  Guarded v_row = zeros(DType::f32, {rows}), v_col = zeros(DType::f32, {cols});
  Factored state{w.values(), v_row.values(), v_col.values()};
  for (int t = 1; t <= 3; ++t) {
    const Guarded g = gradient(rows, cols, t);
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
                                   .gradient_scale = scale},
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
                                      .gradient_scale = scale,
                                      .step = t},
                     {&own_rows_d, &own_cols_d, &measured_d});
      part.put_rows(own_rows, v_row);
      v_col = own_cols;
      squares += measured.at(0);
    }
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
                                    .first_col = part.first_col(),
                                    .gradient_scale = scale,
                                    .lr = clipped_lr(h, squares, rows * cols),
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
  Guarded w = random_normal(DType::f32, {rows, cols}, 1), v = zeros(DType::f32, {rows, cols});
  Full state{w.values(), v.values()};
  for (int t = 1; t <= 3; ++t) {
    const Guarded g = gradient(rows, cols, t);
    double squares = 0;
    for (const Part& part : parts_of(rows, cols)) {
      Guarded own = part.of(g), own_v = part.of(v), measured(DType::f32, {1});
      OnDevice own_d = on_device(own), own_v_d = on_device(own_v), measured_d = on_device(measured);
      run_repeatedly(stream(),
                     AdaFactorMeasure{.gradients = own_d,
                                      .v = own_v_d,
                                      .squares = measured_d,
                                      .gradient_scale = static_cast<float>(h.scale),
                                      .step = t},
                     {&own_v_d, &measured_d});
      part.put(own_v, v);
      squares += measured.at(0);
    }
    for (const Part& part : parts_of(rows, cols)) {
      Guarded own = part.of(g), own_v = part.of(v), own_w = part.of(w);
      OnDevice own_d = on_device(own), own_v_d = on_device(own_v), own_w_d = on_device(own_w);
      run_repeatedly(stream(),
                     AdaFactorApply{.weights = own_w_d,
                                    .gradients = own_d,
                                    .v = own_v_d,
                                    .gradient_scale = static_cast<float>(h.scale),
                                    .lr = clipped_lr(h, squares, rows * cols),
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
