// A sparse layer over the ranks of every kind of layout is the layer of one rank. Run under mpirun;
// every rank also runs the layer alone, and compares.
#include "kernels/gemm/gemm.h"
#include "kernels/permute/exchange.h"
#include "kernels/permute/permute.h"
#include "tests/message_of.h"
#include "tests/models/expert_ranks.h"
#include "tests/parallel/faulty_communicator.h"

namespace orchard::testing {
namespace {

// Tokens of four data ranks: several sequences, one token, nothing but padding, odd numbers.
std::vector<Tokens> uneven_tokens() {
  return {{{17, 40}, 3}, {{1}, 0}, {{0}, 5}, {{33, 1, 9}, 2}};
}

using ExpertParallel = ExpertRanks;

TEST_F(ExpertParallel, EveryLayoutGivesTheLayerOfOneRank) {
  int cases = 0;
  for (const int ranks : {1, 2, 4, 8}) {
    for (const int tp : {1, 2, 4}) {
      for (const int ep : {1, 2, 4, 8}) {
        for (const int etp : {1, 2, 4}) {
          if (ranks % tp || ranks % (ep * etp)) continue;
          for (const SequenceParallel shared : {SequenceParallel::no, SequenceParallel::yes}) {
            if (tp == 1 && shared == SequenceParallel::no) continue;
            for (const float capacity : {0.0f, 0.75f}) {
              expect_same_as_alone({.layout = layout_of(tp, ep, etp),
                                    .ranks = ranks,
                                    .micro_batches = uneven_tokens(),
                                    .sequence_parallel = shared,
                                    .capacity_factor = capacity});
              ++cases;
            }
          }
        }
      }
    }
  }
  EXPECT_GE(cases, 100);
}

TEST_F(ExpertParallel, RanksInAnyOrder) {
  for (const char* order : {"ep-tp-dp-pp", "dp-tp-ep-pp", "dp-ep-tp-pp"}) {
    for (const int ranks : {4, 8}) {
      expect_same_as_alone(
          {.layout = layout_of(2, 2, 2, order), .ranks = ranks, .micro_batches = uneven_tokens()});
    }
  }
}

TEST_F(ExpertParallel, Bf16) {
  for (const auto& [ep, etp] : {std::pair{2, 1}, {4, 1}, {2, 2}, {1, 4}}) {
    for (const ExpertDispatch way : {ExpertDispatch::direct, ExpertDispatch::by_node}) {
      expect_same_as_alone({.layout = layout_of(2, ep, etp),
                            .ranks = 4,
                            .micro_batches = uneven_tokens(),
                            .options = {.dispatch = way},
                            .dtype = DType::bf16},
                           2);
    }
  }
}

TEST_F(ExpertParallel, EverythingToOneExpert) {
  for (const int ranks : {2, 4, 8}) {
    for (const std::int32_t expert : {0, 7}) {
      expect_same_as_alone({.layout = layout_of(1, 2, ranks / 2),
                            .ranks = ranks,
                            .micro_batches = {{{70}, 1}},
                            .top_k = 1,
                            .everyone_chooses = {expert}});
      expect_same_as_alone({.layout = layout_of(1, ranks, 1),
                            .ranks = ranks,
                            .micro_batches = {{{70}, 1}, {{1}, 0}},
                            .options = {.dispatch = ExpertDispatch::by_node, .chunks = 2},
                            .everyone_chooses = {expert, 3}},
                           2);
    }
  }
}

// One rank's experts find their rows among the tokens.
TEST_F(ExpertParallel, OneRankCopiesNoRows) {
  const LayerCase c{.micro_batches = uneven_tokens(), .capacity_factor = 0.75f};
  const auto without = make_cpu_device({.threads = 1});
  replace<DispatchForward>(without->operations(), [](Stream&, const DispatchForward&) {
    fail("rows were copied to experts of their own rank");
  });
  EXPECT_TRUE(run_alone(*without, c, 4) == run_alone(*device_, c, 4));
}

// No rank has a real token: messages are empty, and nobody waits for one.
TEST_F(ExpertParallel, NoTokensAtAll) {
  for (const ExpertDispatch way : {ExpertDispatch::direct, ExpertDispatch::by_node}) {
    expect_same_as_alone({.layout = layout_of(1, 4, 1),
                          .ranks = 4,
                          .micro_batches = {{{0}, 3}, {{0, 0}, 1}},
                          .options = {.dispatch = way, .chunks = 3}},
                         2);
  }
}

TEST_F(ExpertParallel, EitherWayAndOverlapGiveTheSameBits) {
  for (const int chunks : {1, 2, 3}) {
    for (const auto& [tp, ep, etp] : {std::tuple{1, 8, 1}, {1, 4, 2}, {2, 4, 1}, {1, 2, 4}}) {
      for (const int ranks : {4, 8}) {
        if (ranks % (ep * etp)) continue;
        std::optional<LayerResult> first;
        for (const ExpertDispatch way : {ExpertDispatch::direct, ExpertDispatch::by_node}) {
          for (const Overlap overlap : {Overlap::no, Overlap::yes}) {
            const auto result = expect_same_as_alone(
                {.layout = layout_of(tp, ep, etp),
                 .ranks = ranks,
                 .micro_batches = uneven_tokens(),
                 .options = {.dispatch = way, .overlap = overlap, .chunks = chunks}},
                2);
            if (!first) first = result;
            EXPECT_TRUE(result == first) << chunks << " chunks, ep " << ep << ", etp " << etp;
          }
        }
      }
    }
  }
}

// A load that a rank has not seen before makes its buffers grow, once, and says so.
TEST_F(ExpertParallel, RoomGrowsWithTheLargestLoadAndStays) {
  const LayerCase c{.layout = layout_of(1, 2, 1), .ranks = 2, .micro_batches = {{{640}, 0}}};
  const auto group = first_ranks(2);
  if (!group) return;
  const ParallelContext parallel(*group, c.layout);
  SparseLayer layer(*device_, c, &parallel);
  std::vector<std::string> notices;
  layer.dispatcher().on_growth([&](const std::string& notice) { notices.push_back(notice); });
  std::vector<std::int32_t> even, crowded;
  for (int row = 0; row < 640; ++row) {
    even.insert(even.end(), {row % 8, (row + 3) % 8});
    crowded.insert(crowded.end(), {0, 1});  // all on the first rank
  }
  const auto step = [&](const std::vector<std::int32_t>& chosen) {
    layer.step(parallel.coordinates().data, &chosen);
    return std::pair(layer.dispatcher().growths(), device_->statistics().allocations);
  };
  step(even);
  const auto warm = step(even);
  EXPECT_EQ(warm.first, 0);
  step(crowded);
  const auto grown = step(crowded);
  EXPECT_EQ(grown.first, world_->rank() == 0 ? 1 : 0);
  EXPECT_EQ(notices.size(), static_cast<std::size_t>(grown.first));
  for (const auto* chosen : {&crowded, &even, &crowded})
    EXPECT_EQ(step(*chosen), grown) << "memory grew again";
}

TEST_F(ExpertParallel, RefusesMoreRowsOfATokenThanThereMayBe) {
  const LayerCase c{
      .layout = layout_of(1, 1, 8), .ranks = 8, .micro_batches = {{{9}, 0}}, .top_k = 5};
  const auto group = first_ranks(8);
  if (!group) return;
  const ParallelContext parallel(*group, c.layout);
  SparseLayer layer(*device_, c, &parallel);
  EXPECT_EQ(message_of([&] { layer.step(parallel.coordinates().data); }),
            "moe.top_k = 5 times etp = 8 is more than the 32 rows that a token may have");
}

// Faults, each put into one operation of one rank's device, must be seen by the comparison above.
using Faults = std::vector<std::pair<const char*, void (*)(OperationTable&)>>;

void swap_two_rows(Tensor rows) {
  const auto width = rows.dim(1);
  if (rows.dim(0) > 1)
    std::swap_ranges(rows.data<float>(), rows.data<float>() + width, rows.data<float>() + width);
}

const Faults faults = {
    {"an expert left out",
     [](OperationTable& table) {
       replace<GroupedGemm>(table, [](Stream& stream, const GroupedGemm& op) {
         stream.fill_zero(op.c);
         std::vector<std::int32_t> offsets(static_cast<std::size_t>(op.row_offsets.dim(0)));
         std::copy_n(op.row_offsets.data<std::int32_t>(), offsets.size(), offsets.data());
         offsets.back() = offsets[offsets.size() - 2];
         GroupedGemm without = op;
         without.row_offsets =
             ConstTensor(offsets.data(), DType::i32, op.row_offsets.shape(), DeviceKind::cpu);
         original<GroupedGemm>(stream, without);
       });
     }},
    {"two tokens sent in each other's place",
     [](OperationTable& table) {
       replace<DispatchForward>(table, [](Stream& stream, const DispatchForward& op) {
         original<DispatchForward>(stream, op);
         swap_two_rows(op.rows);
       });
     }},
    {"a gate applied twice",
     [](OperationTable& table) {
       replace<CombineForward>(table, [](Stream& stream, const CombineForward& op) {
         std::vector<float> gates(static_cast<std::size_t>(op.gates.numel()));
         for (std::size_t i = 0; i < gates.size(); ++i)
           gates[i] = op.gates.data<float>()[i] * op.gates.data<float>()[i];
         CombineForward twice = op;
         twice.gates = ConstTensor(gates.data(), DType::f32, op.gates.shape(), DeviceKind::cpu);
         original<CombineForward>(stream, twice);
       });
     }},
    {"a part of each expert not added",
     [](OperationTable& table) {
       replace<MapChoices>(table, [](Stream& stream, const MapChoices& op) {
         original<MapChoices>(stream, op);
         for (std::int64_t i = 1; i < op.targets.numel(); i += 2)
           op.targets.data<std::int32_t>()[i] = -1;
       });
     }},
    {"the router's share of d_x forgotten",
     [](OperationTable& table) {
       replace<DispatchBackward>(table, [](Stream& stream, const DispatchBackward& op) {
         DispatchBackward without = op;
         without.d_extra = ConstTensor();
         original<DispatchBackward>(stream, without);
       });
     }},
    {"an expert's gradient added twice", [](OperationTable& table) {
       replace<GroupedGemmWeightGradient>(table,
                                          [](Stream& stream, const GroupedGemmWeightGradient& op) {
                                            original<GroupedGemmWeightGradient>(stream, op);
                                            original<GroupedGemmWeightGradient>(stream, op);
                                          });
     }}};

TEST_F(ExpertParallel, TheComparisonSeesEveryFault) {
  const LayerCase c{
      .layout = layout_of(1, 2, 2), .ranks = 4, .micro_batches = {{{17, 40}, 3}, {{33, 1, 9}, 2}}};
  const auto group = first_ranks(4);
  if (!group) return;
  const LayerResult alone = run_alone(*device_, c, 4);
  for (const auto& [name, inject] : faults) {
    const auto faulty = make_cpu_device({.threads = 1});
    if (group->rank() == 1) inject(faulty->operations());
    const LayerResult result = run_on_ranks(*faulty, c, *group, alone);
    double seen[] = {static_cast<double>(differing(c, result, alone).size())};
    group->sum_on_host(seen);
    EXPECT_GT(seen[0], 0) << name;
  }
}

// Each message of a layer, lost on all ranks.
TEST_F(ExpertParallel, TheComparisonSeesEveryLostMessage) {
  struct Variant {
    SequenceParallel shared;
    MicroBatchSizes sizes;
  };
  for (const auto& [shared, sizes] : {Variant{SequenceParallel::no, MicroBatchSizes::any},
                                      {SequenceParallel::yes, MicroBatchSizes::any},
                                      {SequenceParallel::yes, MicroBatchSizes::alike}}) {
    LayerCase c{.layout = layout_of(2, 2, 1),
                .ranks = 4,
                .micro_batches = {{{17, 40}, 3}, {{33, 1, 9}, 2}},
                .sequence_parallel = shared,
                .sizes = sizes};
    if (sizes == MicroBatchSizes::alike) {
      c.micro_batches = alike_tokens();
      c.capacity_factor = 1;
    }
    const auto group = first_ranks(4);
    if (!group) return;
    const LayerResult alone = run_alone(*device_, c, 2);
    // Forward and backward: dispatch and collect, distribute and collect; the counts; and among
    // tensor ranks logits and d_gates, or y, d_gates and d_x, and the router's gradient, which the
    // test gathers.
    const std::tuple<const char*, CommOp, int> messages[] = {
        {"ep-etp", CommOp::all_to_all, 4},
        {"ep-etp", CommOp::all_gather, sizes == MicroBatchSizes::any ? 1 : 0},
        {"tp", CommOp::all_gather, shared == SequenceParallel::yes ? 3 : 4}};
    for (const auto& [name, op, calls] : messages) {
      for (int call = 0; call <= calls; ++call) {
        Fault fault{.group = name, .op = op, .call = call};
        FaultyCommunicator world(*group, fault);
        const LayerResult result = run_on_ranks(*device_, c, world, alone);
        double seen[] = {static_cast<double>(differing(c, result, alone).size())};
        group->sum_on_host(seen);
        EXPECT_EQ(fault.seen, calls) << name << ": so many messages";
        EXPECT_EQ(seen[0] > 0, call < calls) << name << ", " << name_of(op) << " " << call;
      }
    }
  }
}

// By node, each of dispatch, collect, distribute and collect takes three hops: inside the node,
// between nodes, inside the node.
TEST_F(ExpertParallel, TheComparisonSeesEveryLostHop) {
  const LayerCase c{.layout = layout_of(1, 4, 1),
                    .ranks = 4,
                    .micro_batches = {{{17, 40}, 3}, {{33, 1, 9}, 2}},
                    .options = {.dispatch = ExpertDispatch::by_node}};
  const auto group = first_ranks(4, 2);
  if (!group) return;
  const LayerResult alone = run_alone(*device_, c, 4);
  for (const auto& [name, calls] : {std::pair{"ep-etp", 4}, {"ep-etp of a node", 8}}) {
    for (int call = 0; call <= calls; ++call) {
      Fault fault{
          .group = name, .op = CommOp::all_to_all, .kind = FaultKind::half_empty, .call = call};
      FaultyCommunicator world(*group, fault);
      const LayerResult result = run_on_ranks(*device_, c, world, alone);
      double seen[] = {static_cast<double>(differing(c, result, alone).size())};
      group->sum_on_host(seen);
      EXPECT_EQ(fault.seen, calls) << name << ": so many hops";
      EXPECT_EQ(seen[0] > 0, call < calls) << name << ", hop " << call;
    }
  }
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
