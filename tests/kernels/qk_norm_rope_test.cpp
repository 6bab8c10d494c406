// QK-norm + RoPE against an fp64 reference.
#include "kernels/norm/norm.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/qk_norm_rope_reference.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

using Values = std::vector<double>;

constexpr double theta = 5e5;
constexpr std::int64_t max_positions = 600;

Guarded rotation(std::int64_t head_dim) {
  Guarded table(DType::f32, {max_positions, head_dim});
  rotation_table(table.tensor().data<float>(), max_positions, head_dim, theta);
  return table;
}

// Positions that restart, as documents do, and reach the end of the table.
std::vector<int> document_positions(std::int64_t tokens) {
  std::vector<int> positions;
  for (std::int64_t t = 0; t < tokens; ++t) positions.push_back(static_cast<int>(t * 7 % 13));
  if (tokens > 1) positions.back() = max_positions - 1;
  return positions;
}

// cos | sin of the angles position·θ^(-2i/d), computed here from the definition.
Values exact_rotation(std::int64_t head_dim) {
  const std::int64_t half = head_dim / 2;
  Values table(static_cast<std::size_t>(max_positions * head_dim));
  for (std::int64_t at = 0; at < max_positions * half; ++at) {
    const std::int64_t position = at / half, i = at % half;
    const double angle =
        static_cast<double>(position) *
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    table[static_cast<std::size_t>(position * head_dim + i)] = std::cos(angle);
    table[static_cast<std::size_t>(position * head_dim + half + i)] = std::sin(angle);
  }
  return table;
}

QkNormRopeOperands<double> exact_operands(const Values& weight, std::int64_t heads,
                                          const std::vector<int>& positions) {
  return {weight, exact_rotation(static_cast<std::int64_t>(weight.size())),
          static_cast<std::size_t>(heads), positions};
}

struct Case {
  DType dtype;
  std::int64_t tokens, heads, head_dim;
  int shift = 0;  // elements by which x lies off alignment
};

class QkNormRope : public DeviceTest<Case> {
 protected:
  // At most three roundings of the dtype (x, weight, store), amplified by sqrt(2) in the rotation;
  // fp32 errors of the mean grow like sqrt(head_dim), and the table adds one fp32 rounding.
  double bound() const {
    return 8 * unit_roundoff(parameter().dtype) +
           16 * std::sqrt(parameter().head_dim) * unit_roundoff(DType::f32);
  }
};

TEST_P(QkNormRope, ForwardMatchesReference) {
  const auto [dtype, tokens, heads, head_dim, shift] = parameter();
  const std::vector<int> where = document_positions(tokens);
  Guarded x = random_normal(dtype, {tokens, heads, head_dim}, 1), y = x;
  Guarded weight = random_normal(dtype, {head_dim}, 2), table = rotation(head_dim);
  Guarded positions = integers({tokens}, where), inverse_rms(DType::f32, {tokens, heads});
  OnDevice x_d = on_device(x, shift), y_d = on_device(y), weight_d = on_device(weight);
  OnDevice table_d = on_device(table), positions_d = on_device(positions);
  OnDevice inverse_rms_d = on_device(inverse_rms);
  run_repeatedly(stream(),
                 QkNormRopeForward{.x = x_d,
                                   .weight = weight_d,
                                   .rotation = table_d,
                                   .positions = positions_d,
                                   .y = y_d,
                                   .inverse_rms = inverse_rms_d},
                 {&y_d, &inverse_rms_d});
  expect_close(y, qk_norm_rope_reference(x.values(), exact_operands(weight.values(), heads, where)),
               bound(), "y");
}

TEST_P(QkNormRope, BackwardMatchesReference) {
  const auto [dtype, tokens, heads, head_dim, shift] = parameter();
  const std::vector<int> where = document_positions(tokens);
  Guarded x = random_normal(dtype, {tokens, heads, head_dim}, 1), y = x, d_x = x;
  Guarded d_y = random_normal(dtype, {tokens, heads, head_dim}, 3);
  Guarded weight = random_normal(dtype, {head_dim}, 2), table = rotation(head_dim);
  Guarded positions = integers({tokens}, where), inverse_rms(DType::f32, {tokens, heads});
  Guarded d_weight = random_normal(DType::f32, {head_dim}, 4);
  const Values before = d_weight.values();
  OnDevice x_d = on_device(x, shift), y_d = on_device(y), weight_d = on_device(weight);
  OnDevice table_d = on_device(table), positions_d = on_device(positions);
  OnDevice inverse_rms_d = on_device(inverse_rms), d_y_d = on_device(d_y), d_x_d = on_device(d_x);
  OnDevice d_weight_d = on_device(d_weight);
  run_and_download(stream(),
                   QkNormRopeForward{.x = x_d,
                                     .weight = weight_d,
                                     .rotation = table_d,
                                     .positions = positions_d,
                                     .y = y_d,
                                     .inverse_rms = inverse_rms_d},
                   {&inverse_rms_d});
  run_repeatedly(stream(),
                 QkNormRopeBackward{.x = x_d,
                                    .weight = weight_d,
                                    .rotation = table_d,
                                    .positions = positions_d,
                                    .inverse_rms = inverse_rms_d,
                                    .d_y = d_y_d,
                                    .d_x = d_x_d,
                                    .d_weight = d_weight_d},
                 {&d_x_d, &d_weight_d});
  auto expected = qk_norm_rope_gradients(x.values(), exact_operands(weight.values(), heads, where),
                                         d_y.values());
  for (std::size_t i = 0; i < before.size(); ++i) expected.weight[i] += before[i];
  // Two elements leave hardly a tangent: d_x cancels against terms of size d_y·w·r.
  double terms = 0;
  if (head_dim == 2) {
    for (std::int64_t i = 0; i < inverse_rms.size(); ++i)
      terms = std::max(terms, inverse_rms.at(i));
  }
  expect_close(d_x, expected.x, bound(), "d_x", terms);
  // fp32 sums over tokens and heads, and the fp32 error of inverse_rms.
  expect_close(d_weight, expected.weight,
               16 * std::sqrt(tokens * heads + head_dim) * unit_roundoff(DType::f32), "d_weight");
}

// The head dims of the models, those between, and heads that no vector access may touch.
INSTANTIATE_TEST_SUITE_P(
    Shapes, QkNormRope,
    ::testing::Combine(every_device(),
                       ::testing::Values(Case{DType::f32, 1, 1, 2}, Case{DType::f32, 5, 3, 34},
                                         Case{DType::f32, 131, 4, 64}, Case{DType::f32, 17, 2, 80},
                                         Case{DType::f32, 0, 2, 8}, Case{DType::f32, 7, 2, 256},
                                         Case{DType::f32, 3, 2, 264}, Case{DType::f32, 7, 2, 64, 1},
                                         Case{DType::bf16, 7, 3, 30}, Case{DType::bf16, 67, 8, 128},
                                         Case{DType::bf16, 67, 3, 64}, Case{DType::bf16, 67, 3, 80},
                                         Case{DType::bf16, 33, 5, 96}, Case{DType::bf16, 3, 2, 512},
                                         Case{DType::bf16, 7, 2, 128, 4})),
    device_test_name<Case>);

TEST(QkNormRopeReference, GradientsAreThoseOfTheForward) {
  const std::vector<int> where = {0, 3, 11};
  const Values x = random_normal(DType::f32, {3, 2, 6}, 1).values();
  const Values weight = random_normal(DType::f32, {6}, 2).values();
  const Values d_y = random_normal(DType::f32, {3, 2, 6}, 3).values();
  const auto operands = [&](const Values& w) { return exact_operands(w, 2, where); };
  const auto d = qk_norm_rope_gradients(x, operands(weight), d_y);
  expect_gradient(
      [&](const Values& v) { return dot(d_y, qk_norm_rope_reference(v, operands(weight))); }, x,
      d.x, "d_x");
  expect_gradient([&](const Values& v) { return dot(d_y, qk_norm_rope_reference(x, operands(v))); },
                  weight, d.weight, "d_weight");
}

using QkNormRopeAliasing = DeviceTest<Case>;

TEST_P(QkNormRopeAliasing, OutputsMayOverwriteInputs) {
  const auto [dtype, tokens, heads, head_dim, shift] = parameter();
  const Shape shape = {tokens, heads, head_dim};
  Guarded x = random_normal(dtype, shape, 1), y = x, in_place = x;
  Guarded d_y = random_normal(dtype, shape, 2), d_x = d_y;
  Guarded weight = random_normal(dtype, {head_dim}, 3), table = rotation(head_dim);
  Guarded positions = integers({tokens}, document_positions(tokens));
  Guarded inverse_rms(DType::f32, {tokens, heads});
  OnDevice x_d = on_device(x), y_d = on_device(y), in_place_d = on_device(in_place);
  OnDevice d_y_d = on_device(d_y), d_x_d = on_device(d_x), weight_d = on_device(weight);
  OnDevice table_d = on_device(table), positions_d = on_device(positions);
  OnDevice inverse_rms_d = on_device(inverse_rms);
  QkNormRopeForward forward{.x = x_d,
                            .weight = weight_d,
                            .rotation = table_d,
                            .positions = positions_d,
                            .y = y_d,
                            .inverse_rms = inverse_rms_d};
  run_and_download(stream(), forward, {&y_d});
  forward.x = forward.y = in_place_d.tensor();
  run_and_download(stream(), forward, {&in_place_d});
  EXPECT_TRUE(in_place == y);
  QkNormRopeBackward backward{.x = x_d,
                              .weight = weight_d,
                              .rotation = table_d,
                              .positions = positions_d,
                              .inverse_rms = inverse_rms_d,
                              .d_y = d_y_d,
                              .d_x = d_x_d};
  run_and_download(stream(), backward, {&d_x_d});
  backward.d_x = d_y_d.tensor();
  run_and_download(stream(), backward, {&d_y_d});
  EXPECT_TRUE(d_y == d_x);
}

INSTANTIATE_TEST_SUITE_P(Shapes, QkNormRopeAliasing,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(Case{DType::f32, 5, 2, 24},
                                                              Case{DType::f32, 5, 2, 22})),
                         device_test_name<Case>);

// The host cannot see a wrong position on a GPU: it shows in the results.
TEST(QkNormRopeOnGpu, APositionOutsideTheTableGivesNaN) {
  const auto device = make_policy_device();
  const auto stream = device->make_stream();
  for (const int wrong : {-1, static_cast<int>(max_positions)}) {
    Guarded x = random_normal(DType::f32, {2, 1, 8}, 1), y = x, weight = zeros(DType::f32, {8});
    Guarded table = rotation(8), positions = integers({2}, std::vector<int>{0, wrong});
    Guarded inverse_rms(DType::f32, {2, 1});
    OnDevice x_d(*stream, x), y_d(*stream, y), weight_d(*stream, weight), table_d(*stream, table);
    OnDevice positions_d(*stream, positions), inverse_rms_d(*stream, inverse_rms);
    run_and_download(*stream,
                     QkNormRopeForward{.x = x_d,
                                       .weight = weight_d,
                                       .rotation = table_d,
                                       .positions = positions_d,
                                       .y = y_d,
                                       .inverse_rms = inverse_rms_d},
                     {&y_d});
    for (std::int64_t i = 0; i < 8; ++i) EXPECT_EQ(y.at(i), 0);
    for (std::int64_t i = 8; i < 16; ++i) EXPECT_TRUE(std::isnan(y.at(i)));
  }
}

TEST(QkNormRopeErrors, APositionOutsideTheTableIsNamed) {
  Guarded x = zeros(DType::f32, {2, 1, 4}), weight = zeros(DType::f32, {4}), table = rotation(4);
  Guarded positions = integers({2}, std::vector<int>{0, max_positions});
  Guarded inverse_rms(DType::f32, {2, 1}), y = x;
  EXPECT_EQ(error_of(QkNormRopeForward{.x = x,
                                       .weight = weight,
                                       .rotation = table,
                                       .positions = positions,
                                       .y = y,
                                       .inverse_rms = inverse_rms}),
            "QkNormRopeForward: token 1 has position 600, outside the rotation table of 600 "
            "positions");
}

}  // namespace
}  // namespace orchard::testing
