// Dispatch and combine against a plain walk over tokens and choices.
#include "kernels/permute/permute.h"

#include <omp.h>

#include <optional>

#include "tests/kernels/simt_policy.h"
#include "tests/kernels/thread_orders.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

enum class Routing { random, one_expert, none, some_dropped };

struct Case {
  DType dtype;
  std::int64_t tokens, k, experts, hidden;
  Routing routing;
  std::int64_t parts = 1;  // rows of a choice; `experts` counts those of all parts
  std::int64_t multiple = row_multiple;
  int shift = 0;  // elements by which rows of [hidden] miss their alignment
  std::int64_t group_rows = 0;

  std::int64_t slots() const { return k * parts; }
};

Guarded route(const Case& c) {
  Guarded out(DType::i32, {c.tokens, c.slots()});
  std::mt19937 engine(11);
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    const auto first = static_cast<std::int64_t>(engine() % static_cast<unsigned>(c.experts));
    for (std::int64_t j = 0; j < c.slots(); ++j) {
      // Distinct within a token, as a router's choices are.
      std::int64_t expert = (c.routing == Routing::one_expert ? c.experts - 1 : first) + j * 3;
      if (c.routing == Routing::none) expert = -1;
      if (c.routing == Routing::some_dropped && (engine() % 3 == 0 || t % 7 == 6)) expert = -1;
      out.set(t * c.slots() + j, expert < 0 ? -1.0 : static_cast<double>(expert % c.experts));
    }
  }
  return out;
}

// A plan on the host, and its copy on the device.
struct Plan {
  explicit Plan(const Case& c)
      : experts(route(c)),
        row_offsets(DType::i32, {c.experts + 1}),
        source(DType::i32, {c.group_rows > 0 ? c.experts * c.group_rows
                                             : max_expert_rows(c.tokens, c.slots(), c.experts)}),
        slot(DType::i32, {c.tokens, c.slots()}),
        multiple(c.multiple),
        group_rows(c.group_rows) {}
  Guarded experts, row_offsets, source, slot;
  std::int64_t multiple, group_rows;
};
struct PlanOnDevice {
  PlanOnDevice(Stream& stream, Plan& plan)
      : experts(stream, plan.experts),
        row_offsets(stream, plan.row_offsets),
        source(stream, plan.source),
        slot(stream, plan.slot) {
    run(stream, PermutePlan{.experts = experts,
                            .row_offsets = row_offsets,
                            .source = source,
                            .slot = slot,
                            .multiple = plan.multiple,
                            .group_rows = plan.group_rows});
    for (OnDevice* const output : {&row_offsets, &source, &slot}) output->download();
    stream.synchronize();
  }
  OnDevice experts, row_offsets, source, slot;
};

class Permute : public DeviceTest<Case> {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    plan_.emplace(parameter());
    plan_d_.emplace(stream(), *plan_);
  }

  const Guarded& experts() const { return plan_->experts; }
  const Guarded& row_offsets() const { return plan_->row_offsets; }
  const Guarded& source() const { return plan_->source; }
  const Guarded& slot() const { return plan_->slot; }
  PlanOnDevice& on_device() { return *plan_d_; }

  std::int64_t max_rows() const { return source().size(); }
  std::int64_t rows_in_use() const {
    return static_cast<std::int64_t>(row_offsets().at(parameter().experts));
  }
  Shape token_shape() const { return {parameter().tokens, parameter().hidden}; }
  Shape row_shape() const { return {max_rows(), parameter().hidden}; }
  Guarded gates() const {
    return random_normal(DType::f32, {parameter().tokens, parameter().k}, 21);
  }

  // One rounding to the dtype, and an fp32 sum of at most k + 1 terms of the size of the result's
  // root mean square or below.
  double bound() const { return unit_roundoff(parameter().dtype) + 16 * unit_roundoff(DType::f32); }

 private:
  std::optional<Plan> plan_;
  std::optional<PlanOnDevice> plan_d_;
};

TEST_P(Permute, PlanSortsByExpertThenTokenInPaddedOrFixedGroups) {
  const Case& c = parameter();
  std::vector<double> offsets = {0}, sources, slots(static_cast<std::size_t>(slot().size()), -1);
  for (std::int64_t e = 0; e < c.experts; ++e) {
    for (std::int64_t i = 0; i < c.tokens * c.slots(); ++i) {
      if (experts().at(i) != static_cast<double>(e)) continue;
      slots[static_cast<std::size_t>(i)] = static_cast<double>(sources.size());
      const std::int64_t token = i / c.slots();
      sources.push_back(static_cast<double>(token));
    }
    while (sources.size() % static_cast<std::size_t>(c.multiple) != 0) sources.push_back(-1);
    if (c.group_rows > 0) {
      const auto end = static_cast<std::size_t>((e + 1) * c.group_rows);
      ASSERT_LE(sources.size(), end) << "the case has groups that are too small";
      sources.resize(end, -1);
    }
    offsets.push_back(static_cast<double>(sources.size()));
  }
  sources.resize(static_cast<std::size_t>(max_rows()), -1);
  EXPECT_EQ(row_offsets().values(), offsets);
  EXPECT_EQ(source().values(), sources);
  EXPECT_EQ(slot().values(), slots);
}

TEST_P(Permute, DispatchCopiesRowsAndZeroesPadding) {
  Guarded x = random_normal(parameter().dtype, token_shape(), 1);
  OnDevice x_d(stream(), x, parameter().shift);
  for (const bool with_slot : {false, true}) {
    Guarded rows(parameter().dtype, row_shape());
    const Guarded untouched = rows;
    OnDevice rows_d(stream(), rows, parameter().shift);
    run_and_download(stream(),
                     DispatchForward{.x = x_d,
                                     .source = on_device().source,
                                     .slot = with_slot ? on_device().slot.tensor() : Tensor(),
                                     .row_offsets = on_device().row_offsets,
                                     .rows = rows_d},
                     {&rows_d});
    for (std::int64_t r = 0; r < max_rows(); ++r) {
      for (std::int64_t i = 0; i < parameter().hidden; ++i) {
        const auto token = static_cast<std::int64_t>(source().at(r));
        const std::int64_t at = r * parameter().hidden + i;
        if (r >= rows_in_use()) {
          ASSERT_EQ(rows.at(at), untouched.at(at)) << "row " << r << " past the last group";
        } else {
          ASSERT_EQ(rows.at(at), token < 0 ? 0 : x.at(token * parameter().hidden + i))
              << "row " << r;
        }
      }
    }
  }
}

TEST_P(Permute, DispatchBackwardSumsChoices) {
  const Case& c = parameter();
  Guarded d_rows = random_normal(c.dtype, row_shape(), 2);
  Guarded d_extra = random_normal(c.dtype, token_shape(), 3), d_x(c.dtype, token_shape());
  OnDevice d_rows_d(stream(), d_rows, parameter().shift),
      d_extra_d(stream(), d_extra, parameter().shift), d_x_d(stream(), d_x, parameter().shift);
  for (const bool with_extra : {false, true}) {
    const DispatchBackward op{.d_rows = d_rows_d,
                              .slot = on_device().slot,
                              .d_extra = with_extra ? d_extra_d.tensor() : Tensor(),
                              .d_x = d_x_d};
    run_repeatedly(stream(), op, {&d_x_d});
    std::vector<double> expected;
    for (std::int64_t i = 0; i < c.tokens * c.hidden; ++i) {
      expected.push_back(with_extra ? d_extra.at(i) : 0);
      for (std::int64_t j = 0; j < c.slots(); ++j) {
        const auto row = static_cast<std::int64_t>(slot().at(i / c.hidden * c.slots() + j));
        if (row >= 0) expected.back() += d_rows.at(row * c.hidden + i % c.hidden);
      }
    }
    expect_close(d_x, expected, bound(), "d_x");
  }
}

TEST_P(Permute, CombineWeighsByGates) {
  const Case& c = parameter();
  Guarded rows = random_normal(c.dtype, row_shape(), 4), y(c.dtype, token_shape());
  Guarded weights = gates();
  OnDevice rows_d(stream(), rows, parameter().shift), weights_d(stream(), weights),
      y_d(stream(), y, parameter().shift);
  const CombineForward op{.rows = rows_d, .slot = on_device().slot, .gates = weights_d, .y = y_d};
  run_repeatedly(stream(), op, {&y_d});
  std::vector<double> expected;
  for (std::int64_t i = 0; i < c.tokens * c.hidden; ++i) {
    expected.push_back(0);
    for (std::int64_t j = i / c.hidden * c.slots(); j < (i / c.hidden + 1) * c.slots(); ++j) {
      const auto row = static_cast<std::int64_t>(slot().at(j));
      if (row >= 0)
        expected.back() += weights.at(j / c.parts) * rows.at(row * c.hidden + i % c.hidden);
    }
  }
  expect_close(y, expected, bound(), "y");
}

TEST_P(Permute, CombineBackwardSpreadsTheGradient) {
  const Case& c = parameter();
  Guarded rows = random_normal(c.dtype, row_shape(), 5),
          d_y = random_normal(c.dtype, token_shape(), 6);
  Guarded d_rows(c.dtype, row_shape()), weights = gates(), d_gates(DType::f32, weights.shape());
  const Guarded untouched = d_rows;
  OnDevice rows_d(stream(), rows, parameter().shift), d_y_d(stream(), d_y, parameter().shift),
      weights_d(stream(), weights);
  OnDevice d_rows_d(stream(), d_rows, parameter().shift), d_gates_d(stream(), d_gates);
  CombineBackward op{.rows = rows_d,
                     .source = on_device().source,
                     .slot = on_device().slot,
                     .gates = weights_d,
                     .row_offsets = on_device().row_offsets,
                     .d_y = d_y_d,
                     .d_rows = d_rows_d,
                     .d_gates = d_gates_d};
  run_and_download(stream(), op, {&d_rows_d, &d_gates_d});
  std::vector<double> expected_rows(static_cast<std::size_t>(rows.size())), expected_gates;
  for (std::int64_t r = rows_in_use(); r < max_rows(); ++r) {
    for (std::int64_t i = r * c.hidden; i < (r + 1) * c.hidden; ++i) {
      expected_rows[static_cast<std::size_t>(i)] = untouched.at(i);
    }
  }
  for (std::int64_t j = 0; j < c.tokens * c.slots(); ++j) {
    if (j % c.parts == 0) expected_gates.push_back(0);
    const auto row = static_cast<std::int64_t>(slot().at(j));
    for (std::int64_t i = 0; i < c.hidden && row >= 0; ++i) {
      const double gradient = d_y.at(j / c.slots() * c.hidden + i);
      expected_rows[static_cast<std::size_t>(row * c.hidden + i)] =
          weights.at(j / c.parts) * gradient;
      expected_gates.back() += gradient * rows.at(row * c.hidden + i);
    }
  }
  expect_close(d_rows, expected_rows, bound(), "d_rows");
  // An fp32 dot product of `hidden` terms of size one, for each part.
  const double terms = std::sqrt(static_cast<double>(c.hidden * c.parts));
  expect_close(d_gates, expected_gates, 8 * terms * unit_roundoff(DType::f32), "d_gates", terms);

  const Guarded first = d_rows, first_gates = d_gates;
  if (c.multiple == 1 && c.group_rows == 0) {  // without padding, the plan is not needed
    op.source = op.row_offsets = ConstTensor();
    run_and_download(stream(), op, {&d_rows_d, &d_gates_d});
    EXPECT_TRUE(first == d_rows) << "two runs differ";
  }
  op.d_rows = rows_d.tensor();  // the gradient may take the place of the rows
  run_and_download(stream(), op, {&rows_d, &d_gates_d});
  EXPECT_TRUE(first_gates == d_gates) << "two runs differ";
  for (std::int64_t i = 0; i < rows_in_use() * c.hidden; ++i) ASSERT_EQ(rows.at(i), first.at(i));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Permute,
    ::testing::Combine(
        every_device(),
        ::testing::Values(Case{DType::f32, 1, 1, 1, 1, Routing::random},
                          Case{DType::f32, 0, 2, 4, 8, Routing::random},
                          Case{DType::f32, 67, 2, 8, 17, Routing::random},
                          Case{DType::f32, 129, 2, 8, 64, Routing::some_dropped},
                          Case{DType::f32, 32, 1, 8, 33, Routing::one_expert},
                          Case{DType::f32, 33, 1, 64, 7, Routing::one_expert},
                          Case{DType::f32, 5, 2, 4, 16, Routing::none},
                          Case{DType::f32, 20, 8, 16, 64, Routing::random},
                          Case{DType::f32, 9, 17, 32, 7, Routing::random},
                          Case{DType::bf16, 9, 17, 32, 64, Routing::random},
                          Case{DType::bf16, 9, 12, 32, 9, Routing::some_dropped},
                          Case{DType::bf16, 67, 2, 8, 17, Routing::random},
                          Case{DType::bf16, 31, 8, 65, 127, Routing::some_dropped},
                          Case{DType::bf16, 40, 2, 8, 512, Routing::one_expert},
                          Case{DType::bf16, 1, 8, 256, 136, Routing::random},
                          Case{DType::bf16, 9, 2, 4, 64, Routing::random, 1, row_multiple, 1},
                          Case{DType::f32, 9, 2, 4, 64, Routing::random, 1, row_multiple, 1},
                          Case{DType::bf16, 9, 2, 4, 64, Routing::random, 1, row_multiple, 2},
                          // several blocks of the counting sort
                          Case{DType::f32, 1531, 3, 9, 1, Routing::some_dropped},
                          Case{DType::f32, 67, 2, 12, 17, Routing::random, 2},
                          Case{DType::f32, 0, 2, 4, 8, Routing::none, 2, 1},
                          Case{DType::f32, 45, 3, 8, 19, Routing::some_dropped, 1, 1},
                          Case{DType::bf16, 53, 2, 32, 65, Routing::some_dropped, 4, 1},
                          Case{DType::bf16, 21, 1, 8, 64, Routing::some_dropped, 2, 1},
                          Case{DType::f32, 9, 8, 97, 16, Routing::random, 4, 1},
                          // groups of a fixed size: full, with experts that nobody chooses, all
                          // empty, of several blocks, padded, of all buckets that there may be
                          Case{DType::f32, 33, 1, 64, 7, Routing::one_expert, 1, 1, 0, 33},
                          Case{DType::f32, 5, 2, 4, 16, Routing::none, 1, 1, 0, 3},
                          Case{DType::f32, 0, 2, 4, 8, Routing::none, 1, 1, 0, 5},
                          Case{DType::f32, 1531, 3, 9, 1, Routing::some_dropped, 1, 1, 0, 601},
                          Case{DType::bf16, 53, 2, 32, 65, Routing::some_dropped, 4, 1, 0, 53},
                          Case{DType::bf16, 40, 2, 8, 64, Routing::one_expert, 1, row_multiple, 0,
                               64},
                          Case{DType::bf16, 1, 8, 256, 136, Routing::random, 1, 1, 0, 1})),
    device_test_name<Case>);

TEST(PermuteOnGpu, PlansAlikeInEveryOrderOfThreads) {
  const Case c{DType::f32, 900, 3, 20, 1, Routing::some_dropped};
  expect_same_in_every_thread_order([&](Stream& stream) {
    Plan plan(c);
    const PlanOnDevice on_device(stream, plan);
    return std::vector<Guarded>{plan.row_offsets, plan.source, plan.slot};
  });
}

// Rows of 1024 bf16 are 4 requests of 16 sectors. Each is read and written once, d_y too, however
// many choices need it.
TEST(PermuteOnGpu, MovesEachRowOnceInFullSectors) {
  const Case c{DType::bf16, 12, 3, 4, 1024, Routing::random};
  constexpr std::uint64_t requests = 4, tokens = 12, choices = 12 * 3;
  const auto device = make_policy_device({.counting = simt::Counting::on});
  const auto stream = device->make_stream();
  Plan plan(c);
  PlanOnDevice on_device(*stream, plan);
  const std::int64_t max_rows = plan.source.size();
  Guarded x = random_normal(c.dtype, {c.tokens, c.hidden}, 1), y = x;
  Guarded rows = zeros(c.dtype, {max_rows, c.hidden}), d_rows = rows;
  Guarded gates = random_normal(DType::f32, plan.slot.shape(), 2), d_gates = gates;
  OnDevice x_d(*stream, x), y_d(*stream, y), rows_d(*stream, rows), d_rows_d(*stream, d_rows);
  OnDevice gates_d(*stream, gates), d_gates_d(*stream, d_gates);
  const auto in_use = static_cast<std::uint64_t>(plan.row_offsets.at(c.experts));
  const auto counters_of = [&](const auto& op) {
    stream->synchronize();
    device->reset_counters();
    run(*stream, op);
    stream->synchronize();
    return device->counters();
  };
  // Beside the rows, a warp loads one word per index, gate or offset: a request of one sector.
  const auto expect = [](const simt::AccessCounters& actual, std::uint64_t vectors,
                         std::uint64_t words, const char* what) {
    EXPECT_EQ(actual.requests, vectors + words) << what;
    EXPECT_EQ(actual.sectors, 16 * vectors + words) << what;
  };
  simt::Counters n = counters_of(DispatchForward{
      .x = x_d, .source = on_device.source, .row_offsets = on_device.row_offsets, .rows = rows_d});
  expect(n.loads, requests * choices, static_cast<std::uint64_t>(max_rows) + in_use, "dispatch");
  expect(n.stores, requests * in_use, 0, "dispatch");
  n = counters_of(DispatchForward{.x = x_d,
                                  .source = on_device.source,
                                  .slot = on_device.slot,
                                  .row_offsets = on_device.row_offsets,
                                  .rows = rows_d});
  // A token loads its three slots with one request, in 3 of 12 tokens of two sectors. And the search for
  // padding, as of CombineBackward.
  const std::uint64_t seekers =
      (tokens + static_cast<std::uint64_t>(max_rows) / 32 + 3) / 4 * 4 - tokens;
  EXPECT_EQ(n.loads.requests, requests * tokens + tokens + seekers + in_use / 32);
  EXPECT_EQ(n.loads.sectors, 16 * requests * tokens + tokens + 3 + seekers + 4 * (in_use / 32));
  expect(n.stores, requests * in_use, 0, "dispatch with slots");
  n = counters_of(
      CombineForward{.rows = rows_d, .slot = on_device.slot, .gates = gates_d, .y = y_d});
  expect(n.loads, requests * choices, 2 * choices, "combine");
  expect(n.stores, requests * tokens, 0, "combine");
  n = counters_of(
      DispatchBackward{.d_rows = rows_d, .slot = on_device.slot, .d_extra = x_d, .d_x = y_d});
  expect(n.loads, requests * (choices + tokens), choices, "dispatch backward");
  expect(n.stores, requests * tokens, 0, "dispatch backward");
  n = counters_of(CombineBackward{.rows = rows_d,
                                  .source = on_device.source,
                                  .slot = on_device.slot,
                                  .gates = gates_d,
                                  .row_offsets = on_device.row_offsets,
                                  .d_y = x_d,
                                  .d_rows = d_rows_d,
                                  .d_gates = d_gates_d});
  // And the search for padding, 32 rows a warp and four warps a block: each loads the number of
  // rows, and 32 sources where there are rows, four sectors.
  const std::uint64_t warps = (static_cast<std::uint64_t>(max_rows) + 127) / 128 * 4;
  const std::uint64_t vectors = requests * (choices + tokens), searches = in_use / 32;
  EXPECT_EQ(n.loads.requests, vectors + 2 * choices + warps + searches);
  EXPECT_EQ(n.loads.sectors, 16 * vectors + 2 * choices + warps + 4 * searches);
  expect(n.stores, requests * in_use, choices, "combine backward");
}

TEST(PermuteErrors, NameTheExpertAndTheRowsNeeded) {
  Guarded experts = integers({2, 1}, std::vector<int>{0, 3});
  Guarded row_offsets(DType::i32, {4}), source(DType::i32, {64}), slot(DType::i32, {2, 1});
  const auto stream = cpu_device().make_stream();
  const auto message = [&] {
    try {
      run(*stream,
          PermutePlan{
              .experts = experts, .row_offsets = row_offsets, .source = source, .slot = slot});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(message(), "PermutePlan: experts[1] is 3, outside [-1, 3)");
  experts.set(1, 2);
  EXPECT_EQ(message(), "accepted");
  source = Guarded(DType::i32, {63});
  EXPECT_EQ(
      message(),
      "PermutePlan: experts 0 ... 2 of 3 need 64 rows, source has 63; max_expert_rows gives a "
      "number that always suffices");
}

TEST(PermuteErrors, NameTheExpertThatOutgrowsItsGroup) {
  Guarded experts = integers({3, 1}, std::vector<int>{2, 0, 2});
  Guarded row_offsets(DType::i32, {4}), source(DType::i32, {6}), slot(DType::i32, {3, 1});
  const auto message = [&](std::int64_t multiple, std::int64_t group_rows) {
    return message_of([&] {
      run(*cpu_device().make_stream(), PermutePlan{.experts = experts,
                                                   .row_offsets = row_offsets,
                                                   .source = source,
                                                   .slot = slot,
                                                   .multiple = multiple,
                                                   .group_rows = group_rows});
    });
  };
  EXPECT_EQ(message(1, 2), "");
  EXPECT_EQ(message(1, 1), "PermutePlan: expert 2 of 3 has 2 choices, but groups have 1 rows");
  EXPECT_EQ(message(2, 3), "PermutePlan: group_rows is a multiple of `multiple`, or 0");
}

TEST(PermuteDeterminism, DoesNotDependOnTheNumberOfThreads) {
  const Case c{DType::f32, 300, 2, 8, 65, Routing::some_dropped};
  Guarded experts = route(c), rows = random_normal(DType::f32, {max_expert_rows(300, 2, 8), 65}, 1);
  Guarded row_offsets(DType::i32, {9}), source(DType::i32, {rows.shape()[0]});
  Guarded slot(DType::i32, {300, 2}), gates = random_normal(DType::f32, {300, 2}, 2);
  Guarded serial(DType::f32, {300, 65}), threaded = serial;
  const auto stream = cpu_device().make_stream();
  run(*stream,
      PermutePlan{.experts = experts, .row_offsets = row_offsets, .source = source, .slot = slot});
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  run(*stream, CombineForward{.rows = rows, .slot = slot, .gates = gates, .y = serial});
  omp_set_num_threads(5);
  run(*stream, CombineForward{.rows = rows, .slot = slot, .gates = gates, .y = threaded});
  omp_set_num_threads(before);
  stream->synchronize();
  EXPECT_TRUE(serial == threaded);
}

}  // namespace
}  // namespace orchard::testing
