// Messages of a fixed size between the ranks of experts, where a capacity bounds what they carry: they
// bring what counted ones do, and nobody counts or waits. Run under mpirun.
#include "models/fixed_messages.h"

#include "comm/emulated_nccl.h"
#include "comm/nccl.h"
#include "kernels/gemm/peak.h"
#include "kernels/permute/permute.h"
#include "kernels/simt/simt_device.h"
#include "tests/models/expert_ranks.h"

namespace orchard::testing {
namespace {

class FixedMessages : public ExpertRanks {
 protected:
  // Of a layer's step, forward and backward, between the ranks of the experts.
  struct StepCosts {
    std::int64_t all_gathers = 0, all_to_alls = 0, bytes = 0, host_waits = 0;
  };

  // Of the second step.
  static StepCosts costs_of(const LayerCase& c, Communicator& group) {
    const ParallelContext parallel(group, c.layout);
    SparseLayer layer(*device_, c, &parallel);
    const Communicator& ranks = parallel[MeshGroup::expert_layer];
    const auto now = [&] {
      const OperationStatistics gathers = ranks.statistics(CommOp::all_gather),
                                messages = ranks.statistics(CommOp::all_to_all);
      return StepCosts{gathers.calls, messages.calls, messages.bytes,
                       device_->statistics().host_waits};
    };
    layer.step(parallel.coordinates().data);
    const StepCosts before = now();
    layer.step(parallel.coordinates().data);
    const StepCosts after = now();
    return {after.all_gathers - before.all_gathers, after.all_to_alls - before.all_to_alls,
            after.bytes - before.bytes, after.host_waits - before.host_waits};
  }

  // Whether a row of a product has the same bits however many rows there are. A library's sgemm, which
  // CPUs without AVX-512 use, may add a row's terms in another order.
  static bool rows_keep_their_bits() {
    return gemm_table(*device_).starts_with("f32: oneDNN tile kernels");
  }

  // y, d_x, losses and choices.
  static void expect_same_tokens(const LayerCase& c, const LayerResult& fixed,
                                 const LayerResult& counted) {
    if (rows_keep_their_bits()) {
      EXPECT_TRUE(fixed.micro_batches == counted.micro_batches) << "y, d_x, losses or choices";
    } else {
      EXPECT_EQ(differences(fixed.micro_batches[0], fixed, counted.micro_batches[0], counted,
                            tolerance(c)),
                std::vector<std::string>());
    }
  }
};

// Zeros between the rows of an expert change nothing but the order in which its weight gradient's
// terms are added. What a token gets is the same, to the bit where products are.
TEST_F(FixedMessages, GiveWhatCountedOnesDo) {
  int cases = 0, number = 0;
  const auto expect_alike = [&](LayerCase c) {
    c.micro_batches = alike_tokens();
    c.sizes = MicroBatchSizes::alike;
    const auto fixed = expect_same_as_alone(c);
    c.sizes = MicroBatchSizes::any;
    const auto counted = expect_same_as_alone(c);
    if (!fixed) return;
    SCOPED_TRACE(c.to_string());
    ++cases;
    expect_same_tokens(c, *fixed, *counted);
    for (const auto& [name, gradient] : counted->gradients) {
      // Sums of some hundred terms in fp32, in another order: a few units in the last place.
      const bool alike = name == "moe.router" && rows_keep_their_bits();
      const double allowed = alike ? 0 : 16 * 0x1p-24;
      const double off = relative_difference(fixed->gradients.at(name), gradient, 1e-3);
      EXPECT_LE(off, allowed) << name;
    }
  };
  for (const int ranks : {2, 4, 8}) {
    for (const int tp : {1, 2, 4}) {
      for (const int ep : {1, 2, 4, 8}) {
        for (const int etp : {1, 2, 4}) {
          if (ranks % tp || ranks % (ep * etp) || ep * etp == 1) continue;
          const SequenceParallel shared =
              (ep + etp) % 2 == 0 ? SequenceParallel::no : SequenceParallel::yes;
          constexpr float capacities[] = {1, 1.25f, 0.4f};
          expect_alike({.layout = layout_of(tp, ep, etp),
                        .ranks = ranks,
                        .sequence_parallel = shared,
                        .options = {.chunks = 1 + number % (tp == 1 ? 3 : 2)},
                        .capacity_factor = capacities[number % 3]});
          ++number;
        }
      }
    }
    expect_alike({.layout = layout_of(1, 2, ranks / 2),
                  .ranks = ranks,
                  .capacity_factor = 1,
                  .dtype = DType::bf16});
    // Full groups beside empty ones.
    expect_alike({.layout = layout_of(1, ranks, 1),
                  .ranks = ranks,
                  .capacity_factor = 1,
                  .everyone_chooses = {7, 0}});
  }
  if (world_->size() == 8) {
    EXPECT_GE(cases, 20);
  }
}

// Nor by node, chosen so, or because messages of the fixed size would be small.
TEST_F(FixedMessages, NothingIsCountedByNodeEither) {
  const auto group = first_ranks(4, 2);
  if (!group) return;
  // Rows that leave a rank: a direct message has all of them, the one between nodes what its gateway
  // has been given.
  std::map<bool, std::int64_t> bytes;
  for (const auto& [way, small, by_node] : {std::tuple{ExpertDispatch::by_node, 1, true},
                                            {ExpertDispatch::automatic, 1 << 20, true},
                                            {ExpertDispatch::automatic, 1, false},
                                            {ExpertDispatch::direct, 1 << 20, false}}) {
    for (const int chunks : {1, 2}) {
      LayerCase c{.layout = layout_of(1, 4, 1),
                  .ranks = 4,
                  .micro_batches = alike_tokens(),
                  .options = {.dispatch = way, .small_message_bytes = small, .chunks = chunks},
                  .sizes = MicroBatchSizes::alike,
                  .capacity_factor = 1};
      SCOPED_TRACE(c.to_string());
      const auto fixed = expect_same_as_alone(c, 2);
      const StepCosts costs = costs_of(c, *group);
      EXPECT_EQ(costs.all_gathers, 0);
      if (chunks == 1) {
        EXPECT_EQ(bytes.try_emplace(by_node, costs.bytes).first->second, costs.bytes);
      }
      c.sizes = MicroBatchSizes::any;
      const auto counted = expect_same_as_alone(c, 2);
      ASSERT_TRUE(fixed && counted);
      expect_same_tokens(c, *fixed, *counted);
      EXPECT_EQ(costs_of(c, *group).all_gathers, 1);
    }
  }
  EXPECT_NE(bytes.at(true), bytes.at(false));
}

// However many parts their sequences are cut into, unless rows are asked for.
TEST_F(FixedMessages, CountNothingWhereSequencesAreCutEither) {
  const auto group = first_ranks(2);
  if (!group) return;
  for (const ExpertMessages messages : {ExpertMessages::fixed, ExpertMessages::counted}) {
    for (const int chunks : {1, 4, 3}) {
      const LayerCase c{.layout = layout_of(2, 2, 1),
                        .ranks = 2,
                        .micro_batches = alike_tokens(),
                        .options = {.chunks = chunks, .messages = messages},
                        .sizes = MicroBatchSizes::alike,
                        .capacity_factor = 1};
      expect_same_as_alone(c);
      EXPECT_EQ(costs_of(c, *group).all_gathers, messages == ExpertMessages::fixed ? 0 : 1)
          << c.to_string();
    }
  }
}

// Of four sequences of 24 rows, which keep three of an expert each.
TEST(RoomOfFixedMessages, IsWhatPartsOfSequencesCouldKeep) {
  const CapacityRule rule{.factor = 1, .experts = 8, .length = 24};
  const auto expect = [&](int ranks, int chunks, std::int64_t rows, double room) {
    const auto messages = fixed_messages(rule, 96, ranks, chunks);
    EXPECT_EQ(messages.rows, rows) << ranks << " ranks, " << chunks << " chunks";
    EXPECT_DOUBLE_EQ(messages.room, room) << ranks << " ranks, " << chunks << " chunks";
  };
  expect(1, 1, 12, 1);
  expect(4, 1, 3, 1);
  expect(2, 4, 3, 2);   // halves of sequences
  expect(2, 3, 6, 3);   // parts of 16 rows, some of which touch two
  expect(96, 1, 1, 8);  // a row each
}

TEST_F(FixedMessages, NeedNoCountsAndNoWait) {
  const auto group = first_ranks(2, 2);
  if (!group) return;
  LayerCase c{.layout = layout_of(1, 2, 1),
              .ranks = 2,
              .micro_batches = alike_tokens(),
              .capacity_factor = 1};
  const StepCosts counted = costs_of(c, *group);
  c.sizes = MicroBatchSizes::alike;
  const StepCosts fixed = costs_of(c, *group);
  EXPECT_EQ(counted.all_gathers, 1);
  EXPECT_EQ(fixed.all_gathers, 0);
  EXPECT_EQ(fixed.all_to_alls, 4);
  // One for each message, which a CPU's ranks hand over in host memory, and the test's own.
  EXPECT_EQ(fixed.host_waits, fixed.all_to_alls + 1);
  EXPECT_GT(counted.host_waits, fixed.host_waits);
  // Four messages of 8 targets' rows: four times C = 24 · 1 / 8 = 3 rows, 32 columns of fp32.
  EXPECT_EQ(fixed.bytes, 4 * 8 * 12 * 32 * 4);
}

// On the emulator copies to and from plain host memory count as waits, as on a GPU.
TEST_F(FixedMessages, APlanWaitsForCountsAloneOnAGpu) {
  const auto device = make_simt_device();
  const auto stream = device->make_stream();
  if (world_->size() == 1) return;
  const auto messages =
      make_nccl_world(*world_, {.device = *device, .library = make_emulated_nccl()});
  const ParallelContext parallel(*messages, {.expert = messages->size()});
  const auto dispatcher = ExpertDispatcher::of(*device, *stream, parallel, 8);
  constexpr std::int64_t tokens = 40, k = 2;
  std::vector<std::int32_t> chosen;
  for (std::int64_t i = 0; i < tokens; ++i)
    chosen.insert(chosen.end(), {static_cast<std::int32_t>(i % 8), -1});
  const Buffer memory = device->allocate(chosen.size() * sizeof(std::int32_t));
  const Tensor experts = memory.tensor(DType::i32, {tokens, k});
  const ConstTensor parts[] = {experts};
  stream->copy(experts, ConstTensor(chosen.data(), DType::i32, experts.shape(), DeviceKind::cpu));
  stream->synchronize();
  Arena arena(*device, std::size_t{1} << 20);
  const auto waits = [&](std::int64_t most_rows) {
    arena.reset(*stream);
    const std::int64_t before = device->statistics().host_waits;
    const auto routes = dispatcher->plan(
        *stream, arena, {.experts = parts, .row_bytes = 64, .most_rows = most_rows});
    const std::int64_t after = device->statistics().host_waits;
    stream->synchronize();
    return after - before;
  };
  for (const std::int64_t most_rows : {5, 0}) waits(most_rows);  // memory grows
  EXPECT_EQ(waits(0), 1) << "for the counts, not for the tables that follow from them";
  EXPECT_EQ(waits(5), 0);
  EXPECT_EQ(waits(6), 0) << "tables of another size";
}

// What the zeros behind an expert's rows keep out: a gradient that nobody wrote.
TEST_F(FixedMessages, TheComparisonSeesWhatUnusedRowsHold) {
  const LayerCase c{.layout = layout_of(1, 2, 1),
                    .ranks = 2,
                    .micro_batches = alike_tokens(),
                    .sizes = MicroBatchSizes::alike,
                    .capacity_factor = 1};
  const auto group = first_ranks(2);
  if (!group) return;
  const LayerResult alone = run_alone(*device_, c, 2);
  for (const bool unwritten : {false, true}) {
    const auto faulty = make_cpu_device({.threads = 1});
    if (unwritten) {
      replace<CombineBackward>(faulty->operations(), [](Stream& stream, const CombineBackward& op) {
        std::fill_n(op.d_rows.data<float>(), op.d_rows.numel(), NAN);
        CombineBackward without = op;
        without.source = without.row_offsets = ConstTensor();
        original<CombineBackward>(stream, without);
      });
    }
    const LayerResult result = run_on_ranks(*faulty, c, *group, alone);
    EXPECT_EQ(!differing(c, result, alone).empty(), unwritten);
  }
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
