// The router, combine, and the gradients of dispatch and combine: their errors are at most twice those of the
// same formula in the same precision (same_precision.h). On a GPU of any architecture they are the kernels of
// sm_80.
#include <algorithm>
#include <random>

#include "kernels/permute/permute.h"
#include "tests/kernels/router_reference.h"
#include "tests/kernels/same_precision.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

using Router = DeviceTest<RouterCase>;

TEST_P(Router, ErrsAtMostTwiceAsMuchAsThePlainFormula) {
  const RouterCase& c = parameter();
  const Guarded logits = random_normal(f32, {c.tokens(), c.experts}, 7, 1.5);
  RouterRun forward(stream(), c, logits);
  // router_test holds the choices; here all take the same ones.
  const std::vector<double> chosen = forward.chosen.values();
  const RouterReference<double> exact(c, logits.values(), &chosen);
  const RouterReference<float> plain(c, values_as<float>(logits), &chosen);
  expect_twice(forward.probabilities, exact.p, plain.p, "probabilities");
  expect_twice(forward.log_sum_exp, exact.log_sum_exp, plain.log_sum_exp, "log_sum_exp");
  expect_twice(forward.gates, exact.gates, plain.gates, "gates");
  expect_twice(forward.margins, exact.margins, plain.margins, "margins");
  expect_twice(forward.fractions, exact.fractions, plain.fractions, "choice_fractions");
  expect_twice(forward.balance_loss, exact.balance_loss, plain.balance_loss, "balance_loss");
  expect_twice(forward.z_loss, exact.z_loss, plain.z_loss, "z_loss");

  Guarded d_gates = random_normal(f32, {c.tokens(), c.k}, 8);
  const RouterLossScales scales{.balance = 0.7f, .z = 0.03f};
  const Guarded d_logits = run_router_backward(stream(), c, forward, d_gates, scales);
  const RouterGradient<double> d_exact(c, forward, d_gates, scales);
  const RouterGradient<float> d_plain(c, forward, d_gates, scales);
  expect_twice(d_logits, d_exact.d_logits, d_plain.d_logits, d_exact.terms, "d_logits");
}

// Rows that lanes share in every way; sums over tokens in several slices, with padding and drops.
INSTANTIATE_TEST_SUITE_P(
    Shapes, Router,
    ::testing::Combine(
        every_device(),
        ::testing::Values(RouterCase{8, 2, 1.0f, BalanceCounts::all_choices, {300, 70}, {290, 70}},
                          RouterCase{64, 2, 0, BalanceCounts::first_choice, {300}, {300}},
                          RouterCase{100, 4, 1.0f, BalanceCounts::first_choice, {70}, {66}},
                          RouterCase{256, 8, 0, BalanceCounts::all_choices, {40}, {40}})),
    device_test_name<RouterCase>);

struct SlotsCase {
  DType dtype;
  std::int64_t tokens, k, parts, hidden;

  std::int64_t slots() const { return k * parts; }
  Shape rows() const { return {tokens * slots(), hidden}; }
};

// Rows in random places, every seventh slot without one.
Guarded random_slots(const SlotsCase& c) {
  std::vector<int> rows(static_cast<std::size_t>(c.tokens * c.slots()));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = i % 7 == 3 ? -1 : static_cast<int>(i);
  std::mt19937 engine(11);
  for (std::size_t i = rows.size(); i > 1; --i) std::swap(rows[i - 1], rows[engine() % i]);
  return integers({c.tokens, c.slots()}, rows);
}

struct SlotsOperands {
  Guarded slot, gates, rows, d_y;

  explicit SlotsOperands(const SlotsCase& c)
      : slot(random_slots(c)),
        gates(random_normal(f32, {c.tokens, c.k}, 1)),
        rows(random_normal(c.dtype, c.rows(), 2)),
        d_y(random_normal(c.dtype, {c.tokens, c.hidden}, 3)) {}
};

// Of combine, and of dispatch's gradient with `rows` for d_rows and d_y for d_extra.
template <class Real>
struct SlotsFormula {
  std::vector<Real> y, d_x, d_rows, d_gates;

  SlotsFormula(const SlotsCase& c, const SlotsOperands& o)
      : y(static_cast<std::size_t>(o.d_y.size())),
        d_x(values_as<Real>(o.d_y)),
        d_rows(static_cast<std::size_t>(o.rows.size())),
        d_gates(static_cast<std::size_t>(o.gates.size())) {
    for (std::int64_t i = 0; i < o.slot.size(); ++i) {
      if (o.slot.at(i) < 0) continue;
      const auto choice = static_cast<std::size_t>(i / c.parts);
      const auto gate = static_cast<Real>(o.gates.at(i / c.parts));
      for (std::int64_t column = 0; column < c.hidden; ++column) {
        const std::int64_t of_token = i / c.slots() * c.hidden + column;
        const std::int64_t of_row = static_cast<std::int64_t>(o.slot.at(i)) * c.hidden + column;
        const auto row = static_cast<Real>(o.rows.at(of_row));
        const auto gradient = static_cast<Real>(o.d_y.at(of_token));
        y[static_cast<std::size_t>(of_token)] += gate * row;
        d_x[static_cast<std::size_t>(of_token)] += row;
        d_rows[static_cast<std::size_t>(of_row)] = gate * gradient;
        d_gates[choice] += gradient * row;
      }
    }
  }
};

using Slots = DeviceTest<SlotsCase>;

TEST_P(Slots, ErrAtMostTwiceAsMuchAsThePlainFormula) {
  const SlotsCase& c = parameter();
  SlotsOperands o(c);
  Guarded y(c.dtype, o.d_y.shape()), d_x = y, d_rows = zeros(c.dtype, c.rows()), d_gates = o.gates;
  OnDevice slot_d = on_device(o.slot), gates_d = on_device(o.gates), rows_d = on_device(o.rows);
  OnDevice d_y_d = on_device(o.d_y), y_d = on_device(y), d_x_d = on_device(d_x);
  OnDevice d_rows_d = on_device(d_rows), d_gates_d = on_device(d_gates);
  run_and_download(
      stream(), CombineForward{.rows = rows_d, .slot = slot_d, .gates = gates_d, .y = y_d}, {&y_d});
  run_and_download(
      stream(), DispatchBackward{.d_rows = rows_d, .slot = slot_d, .d_extra = d_y_d, .d_x = d_x_d},
      {&d_x_d});
  run_and_download(stream(),
                   CombineBackward{.rows = rows_d,
                                   .slot = slot_d,
                                   .gates = gates_d,
                                   .d_y = d_y_d,
                                   .d_rows = d_rows_d,
                                   .d_gates = d_gates_d},
                   {&d_rows_d, &d_gates_d});
  const SlotsFormula<double> exact(c, o);
  const SlotsFormula<float> plain(c, o);
  expect_twice(y, exact.y, plain.y, "y");
  expect_twice(d_x, exact.d_x, plain.d_x, "d_x");
  expect_twice(d_rows, exact.d_rows, plain.d_rows, "d_rows");
  // A row of a few choices is too short to tell what a dot product that cancels is made of.
  expect_twice(d_gates, exact.d_gates, plain.d_gates, sizes_in_rows(exact.d_gates, d_gates.size()),
               "d_gates");
}

// Few slots and many, vectors of columns and single ones.
INSTANTIATE_TEST_SUITE_P(Shapes, Slots,
                         ::testing::Combine(every_device(),
                                            ::testing::Values(SlotsCase{f32, 67, 2, 1, 129},
                                                              SlotsCase{f32, 33, 8, 2, 64},
                                                              SlotsCase{b16, 67, 2, 1, 264},
                                                              SlotsCase{b16, 33, 8, 1, 31})),
                         device_test_name<SlotsCase>);

}  // namespace
}  // namespace orchard::testing
