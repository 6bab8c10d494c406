// AdamW against an fp64 reference, step after step.
#include "tests/kernels/adamw_reference.h"
#include "tests/kernels/checks.h"
#include "tests/kernels/device_test.h"

namespace orchard::testing {
namespace {

struct Case {
  std::int64_t size;
  int shift = 0;  // elements by which the copy lies off alignment
};

using AdamWSteps = DeviceTest<Case>;

TEST_P(AdamWSteps, FollowTheReference) {
  const auto [size, shift] = parameter();
  const AdamWHyper h;
  Guarded w = random_normal(DType::f32, {size}, 1), m = zeros(DType::f32, {size}), v = m;
  Guarded copy(DType::bf16, {size}), scale = number(h.scale);
  OnDevice scale_d = on_device(scale);
  OnDevice w_d = on_device(w), m_d = on_device(m), v_d = on_device(v);
  OnDevice copy_d = on_device(copy, shift);
  AdamWState<double> state{w.values(), m.values(), v.values()};
  for (int t = 1; t <= 4; ++t) {
    // Gradients of very different sizes: the update hardly depends on the size.
    Guarded g =
        random_normal(DType::f32, {size}, 10 + static_cast<unsigned>(t), std::pow(10.0, 1 - 2 * t));
    OnDevice g_d = on_device(g);
    run_repeatedly(stream(),
                   AdamW{.weights = w_d,
                         .gradients = g_d,
                         .m = m_d,
                         .v = v_d,
                         .copy = copy_d,
                         .gradient_scale = scale_d,
                         .lr = static_cast<float>(h.lr),
                         .beta1 = static_cast<float>(h.beta1),
                         .beta2 = static_cast<float>(h.beta2),
                         .epsilon = static_cast<float>(h.epsilon),
                         .weight_decay = static_cast<float>(h.decay),
                         .step = t},
                   {&w_d, &m_d, &v_d, &copy_d});
    adamw_reference(state, g.values(), h, t);
    // A handful of fp32 roundings a step, relative to each element's own size or the others'.
    const double bound = 8 * t * unit_roundoff(DType::f32);
    expect_close(m, state.m, bound, "m");
    expect_close(v, state.v, bound, "v");
    expect_close(w, state.w, bound, "weights");
    for (std::int64_t i = 0; i < size; ++i) {
      ASSERT_EQ(copy.at(i), to_float(to_bf16(static_cast<float>(w.at(i))))) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, AdamWSteps,
    ::testing::Combine(every_device(), ::testing::Values(Case{0}, Case{1}, Case{15}, Case{17},
                                                         Case{127}, Case{256, 1}, Case{10007})),
    device_test_name<Case>);

using AdamWFirstStep = DeviceTest<Case>;

TEST_P(AdamWFirstStep, MovesEachWeightByTheLearningRateAgainstItsGradient) {
  const std::int64_t size = parameter().size;
  Guarded w = zeros(DType::f32, {size}), m = w, v = w, g = random_normal(DType::f32, {size}, 1);
  OnDevice w_d = on_device(w), m_d = on_device(m), v_d = on_device(v), g_d = on_device(g);
  run_and_download(
      stream(), AdamW{.weights = w_d, .gradients = g_d, .m = m_d, .v = v_d, .lr = 0.25f, .step = 1},
      {&w_d});
  // Bias correction makes m̂ = g and v̂ = g² exactly; ε = 1e-8 shows for the smallest gradients.
  for (std::int64_t i = 0; i < size; ++i) EXPECT_NEAR(w.at(i), g.at(i) > 0 ? -0.25 : 0.25, 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Sizes, AdamWFirstStep,
                         ::testing::Combine(every_device(), ::testing::Values(Case{33})),
                         device_test_name<Case>);

using AdamWScale = DeviceTest<Case>;

TEST_P(AdamWScale, ThatIsNotFiniteChangesNoBit) {
  const auto [size, shift] = parameter();
  // Of any earlier step.
  Guarded w = random_normal(DType::f32, {size}, 1), m = random_normal(DType::f32, {size}, 2);
  Guarded v = random_normal(DType::f32, {size}, 3, 0.1, 2);
  Guarded copy = random_normal(DType::bf16, {size}, 4), g = random_normal(DType::f32, {size}, 5);
  const std::initializer_list<Guarded*> states = {&w, &m, &v, &copy};
  std::vector<Guarded> before;
  for (const Guarded* state : states) before.push_back(*state);
  OnDevice w_d = on_device(w), m_d = on_device(m), v_d = on_device(v),
           copy_d = on_device(copy, shift);
  for (const double gradient : {1.0, std::nan(""), HUGE_VAL}) {
    for (const double factor : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      SCOPED_TRACE(fmt::format("a gradient of {}, scale {}", gradient, factor));
      g.set(size / 2, gradient);
      Guarded scale = number(factor);
      OnDevice g_d = on_device(g), scale_d = on_device(scale);
      run_and_download(stream(),
                       AdamW{.weights = w_d,
                             .gradients = g_d,
                             .m = m_d,
                             .v = v_d,
                             .copy = copy_d,
                             .gradient_scale = scale_d,
                             .lr = 0.25f,
                             .weight_decay = 0.5f,
                             .step = 2},
                       {&w_d, &m_d, &v_d, &copy_d});
      auto kept = before.begin();
      for (const Guarded* state : states)
        EXPECT_TRUE(*state == *kept++) << kept - before.begin() << ". state";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, AdamWScale,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(Case{33}, Case{2049}, Case{256, 1})),
                         device_test_name<Case>);

TEST(AdamWErrors, ASecondMomentOfAnotherShapeIsNamed) {
  Guarded w = zeros(DType::f32, {4}), v = zeros(DType::f32, {3});
  EXPECT_EQ(error_of(AdamW{.weights = w, .gradients = w, .m = w, .v = v}),
            "AdamW: v has shape [3], expected [4]");
}

}  // namespace
}  // namespace orchard::testing
