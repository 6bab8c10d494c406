// A layout changes how a step is computed, not what: losses and every parameter's gradient are
// those of one rank. One program of 8 ranks under mpirun builds meshes of all sizes from
// sub-communicators, several of them at a time.
#include <gtest/gtest.h>

#include "tests/comm/ranks_test.h"
#include "tests/parallel/faulty_communicator.h"
#include "tests/parallel/layout_harness.h"
#include "tests/parallel/toy_batches.h"

namespace orchard::testing {
namespace {

// Enough heads for eight tensor ranks, and too few key-value heads for four.
ModelConfig dense_model() {
  ModelConfig config;
  config.vision = {.layers = 2, .width = 32, .heads = 8, .mlp_width = 48, .patch = 2, .side = 6};
  config.connector = {.hidden = 12, .depth = 1, .out_side = 2};
  config.decoder = {.layers = 2,
                    .hidden = 24,
                    .ffn = 32,
                    .heads = 8,
                    .kv_heads = 2,
                    .head_dim = 8,
                    .vocabulary = 48,
                    .max_positions = 16};
  return config;
}

LayoutTask task_of(const std::string& name, const ModelConfig& model, ReplicaOptions options = {}) {
  return {.name = name, .model = model, .options = std::move(options), .steps = mixed_steps(model)};
}

const LayoutOutcome& reference_of(const LayoutTask& task) {
  static std::map<std::string, LayoutOutcome> known;
  const auto [at, is_new] = known.try_emplace(task.name);
  if (is_new) {
    const auto alone = make_single_communicator();
    at->second = run_layout(task, {.ranks = ParallelContext(*alone, {})});
  }
  return at->second;
}

struct Case {
  int ranks = 1;
  Layout layout;
  SequenceParallel sequence_parallel = SequenceParallel::yes;

  std::string to_string() const {
    return fmt::format("{} ranks, {}, sequence parallelism {}", ranks, layout.to_string(),
                       sequence_parallel == SequenceParallel::yes ? "on" : "off");
  }
};

// Runs the cases, those of the same size next to each other.
void expect_same_everywhere(const LayoutTask& task, std::vector<Case> cases,
                            const LayoutTolerance& tolerance = {}) {
  const LayoutOutcome& reference = reference_of(task);
  const auto world = session->world();
  std::ranges::stable_sort(cases, {}, &Case::ranks);
  for (std::size_t first = 0; first < cases.size();) {
    const int size = cases[first].ranks;
    std::size_t last = first;
    while (last < cases.size() && cases[last].ranks == size) ++last;
    if (size <= world->size()) {
      const auto ranks = group_of(*world, size);
      const int groups = world->size() / size;
      for (std::size_t i = first + static_cast<std::size_t>(world->rank() / size); i < last;
           i += static_cast<std::size_t>(groups)) {
        const ParallelContext context(*ranks, cases[i].layout, cases[i].sequence_parallel);
        const LayoutOutcome outcome = run_layout(task, {.ranks = context, .reference = &reference});
        EXPECT_EQ(differences(outcome, reference, tolerance), "")
            << task.name << ", " << cases[i].to_string() << ", "
            << context.mesh().name(context.rank());
      }
    }
    first = last;
  }
  world->barrier();
}

TEST(Layouts, DataParallel) {
  expect_same_everywhere(task_of("dense", dense_model()), {{1}, {2}, {4}, {8}});
}

TEST(Layouts, TensorParallel) {
  std::vector<Case> cases;
  for (const SequenceParallel rows : {SequenceParallel::no, SequenceParallel::yes}) {
    for (const int tensor : {2, 4, 8}) {
      for (int data = 1; data * tensor <= 8; data *= 2)
        cases.push_back({data * tensor, {.tensor = tensor}, rows});
    }
  }
  expect_same_everywhere(task_of("dense", dense_model()), cases);
}

// Micro-batches of one row have fewer than there are chunks, others are not divided evenly.
TEST(Layouts, TensorParallelInChunks) {
  std::vector<Case> cases;
  for (const SequenceParallel rows : {SequenceParallel::no, SequenceParallel::yes}) {
    for (const int tensor : {2, 4, 8}) {
      for (const int chunks : {2, 3, 7})
        cases.push_back({tensor, {.tensor = tensor, .tensor_chunks = chunks}, rows});
    }
  }
  expect_same_everywhere(task_of("dense", dense_model()), cases);
}

// Micro-batches that leave no part of the model without a gradient: where a message is all zeros,
// nobody can tell that it went missing; each of two chunks has targets. The second step shows what the first one's update did.
LayoutTask busy_task() {
  LayoutTask task{.name = "busy", .model = dense_model()};
  std::vector<MicroBatch> batches;
  for (const ToyShape& shape : {ToyShape{.sequences = 2, .length = 13, .tiles = 1, .padding = 3},
                                {.sequences = 1, .length = 19, .tiles = 2}})
    batches.push_back(toy_micro_batch(task.model, shape, std::to_string(shape.tiles)));
  task.steps = {batches, batches};
  return task;
}

// What the comparison says of a pair of ranks with something wrong.
std::string differences_with(Communicator& pair, Fault& fault, const Layout& layout,
                             SequenceParallel rows, const Sabotage& sabotage = {}) {
  const LayoutTask task = busy_task();
  const LayoutOutcome& reference = reference_of(task);
  FaultyCommunicator faulty(pair, fault);
  const ParallelContext context(faulty, layout, rows), faultless(pair, layout, rows);
  const LayoutRun run{
      .ranks = context, .reference = &reference, .sabotage = sabotage, .comparing = &faultless};
  try {
    return differences(run_layout(task, run), reference, {});
  } catch (const Error& error) {
    return error.what();  // a loss that is not finite, on both
  }
}

// Every single collective of a step, one after the other: those of the first of two.
TEST(Faults, AMissingOrDoubledCollectiveIsCaught) {
  const auto world = session->world();
  if (world->size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto pair = group_of(*world, 2);
  struct Meeting {
    std::string group;
    CommOp op;
    SequenceParallel rows = SequenceParallel::yes;
    int chunks = 1;
  };
  const Meeting meetings[] = {{"tp", CommOp::reduce_scatter},
                              {"tp", CommOp::all_gather},
                              {"tp", CommOp::all_reduce},  // replicas' gradients
                              {"tp", CommOp::all_reduce, SequenceParallel::no},
                              {"tp", CommOp::reduce_scatter, SequenceParallel::yes, 2},
                              {"tp", CommOp::all_gather, SequenceParallel::yes, 2},
                              {"tp", CommOp::all_reduce, SequenceParallel::no, 2},
                              {"dp", CommOp::reduce_scatter},
                              {"dp", CommOp::all_gather}};
  for (const Meeting& meeting : meetings) {
    const Layout layout{.tensor = meeting.group == "tp" ? 2 : 1, .tensor_chunks = meeting.chunks};
    Fault none{.group = meeting.group, .op = meeting.op, .call = -1};
    ASSERT_EQ(differences_with(*pair, none, layout, meeting.rows), "") << "without a fault";
    ASSERT_GT(none.seen, 0);
    for (const FaultKind kind : {FaultKind::missing, FaultKind::doubled}) {
      if (kind == FaultKind::doubled && meeting.op == CommOp::all_gather) continue;
      // The messages of chunks are many, and alike.
      const int stride = (meeting.chunks > 1 ? 3 : 1) * world->size() / 2;
      for (int call = world->rank() / 2; call < none.seen / 2; call += stride) {
        Fault fault{.group = meeting.group, .op = meeting.op, .kind = kind, .call = call};
        EXPECT_NE(differences_with(*pair, fault, layout, meeting.rows), "")
            << (kind == FaultKind::missing ? "missing " : "doubled ") << name_of(fault.op) << " of "
            << fault.group << ", call " << call << " of " << none.seen;
      }
    }
  }
}

// Two ranks that serve one key-value head add up the gradients of their query heads.
TEST(Faults, AWrongSumOfASharedKeyValueHeadIsCaught) {
  const auto world = session->world();
  if (world->size() < 4) GTEST_SKIP() << "needs four ranks";
  const auto four = group_of(*world, 4);
  for (const SequenceParallel rows : {SequenceParallel::no, SequenceParallel::yes}) {
    Fault none{.group = "tp-replicas-2", .op = CommOp::all_reduce, .call = -1};
    ASSERT_EQ(differences_with(*four, none, {.tensor = 4}, rows), "") << "without a fault";
    ASSERT_GT(none.seen, 0);
    for (const FaultKind kind : {FaultKind::missing, FaultKind::doubled}) {
      for (int call = 0; call < none.seen / 2; ++call) {
        Fault fault{.group = none.group, .op = none.op, .kind = kind, .call = call};
        EXPECT_NE(differences_with(*four, fault, {.tensor = 4}, rows), "")
            << (kind == FaultKind::missing ? "missing " : "doubled ") << call << " of "
            << none.seen;
      }
    }
  }
  world->barrier();
}

// Losses over data ranks, which meet on the host, and the gradient norm over all.
TEST(Faults, ALostSumOfLossesOrSquaresIsCaught) {
  const auto world = session->world();
  if (world->size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto pair = group_of(*world, 2);
  const std::tuple<std::string, CommOp, int> sums[] = {{"dp", CommOp::host, 1},
                                                       {pair->name(), CommOp::all_gather, 1},
                                                       {pair->name(), CommOp::all_gather, 2}};
  for (const auto& [group, op, tensor] : sums) {
    const Layout layout{.tensor = tensor};
    Fault none{.group = group, .op = op, .call = -1};
    ASSERT_EQ(differences_with(*pair, none, layout, SequenceParallel::yes), "")
        << "without a fault";
    ASSERT_EQ(none.seen, 2) << "one a step, group " << group;
    Fault fault{.group = group, .op = op};
    EXPECT_NE(differences_with(*pair, fault, layout, SequenceParallel::yes), "") << group;
  }
  world->barrier();
}

TEST(Faults, AWrongSplitIsCaught) {
  const auto world = session->world();
  if (world->size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto pair = group_of(*world, 2);
  for (const char* name : {"embedding", "decoder.layers.0.attention.wq",
                           "decoder.layers.1.attention.wk", "decoder.layers.1.feed_forward.w_down",
                           "vision.layers.0.attention.wv", "vision.layers.1.feed_forward.w_in"}) {
    Fault none{.group = "none"};
    const Sabotage exchange = [&](Replica& replica) {
      const Parameter& p = *replica.store().find(name);
      const ParallelContext ranks(*pair, {.tensor = 2});
      const std::vector<float> whole = gather_whole(replica.stream(), ranks, p.spec, p.master);
      Slice others = p.shard.slice;
      others.begin = others.begin == 0 ? others.count : 0;
      std::vector<float> elements(static_cast<std::size_t>(p.shape().numel()));
      cut(p.spec.shape, others, whole, elements);
      replica.store().write(replica.stream(), p, elements);
    };
    EXPECT_NE(differences_with(*pair, none, {.tensor = 2}, SequenceParallel::yes, exchange), "")
        << name;
  }
}

// Runs a layout with this rank's group; of several groups all do the same.
LayoutOutcome run_with(const LayoutTask& task, const Case& layout) {
  const auto world = session->world();
  const auto ranks = group_of(*world, layout.ranks);
  const ParallelContext context(*ranks, layout.layout, layout.sequence_parallel);
  LayoutOutcome outcome = run_layout(task, {.ranks = context, .reference = &reference_of(task)});
  world->barrier();
  return outcome;
}

TEST(BitEqual, TheSameLayoutTwiceAndRecomputation) {
  if (session->world()->size() < 8) GTEST_SKIP() << "needs eight ranks";
  const LayoutTask task = task_of("dense", dense_model());
  ModelConfig recomputing = dense_model();
  recomputing.recompute = Recompute::blocks;
  const LayoutTask again = task_of("dense, recomputed", recomputing);
  for (const Case& layout :
       {Case{2, {.tensor = 2}}, {2, {.tensor = 2}, SequenceParallel::no}, {8, {.tensor = 4}}}) {
    const LayoutOutcome first = run_with(task, layout);
    EXPECT_TRUE(first.has_bits_of(run_with(task, layout))) << layout.to_string();
    EXPECT_TRUE(first.has_bits_of(run_with(again, layout))) << layout.to_string() << ", recomputed";
  }
}

// Chunks decide in which order weight gradients are added up; when their messages come does not.
TEST(BitEqual, OverlapOfChunksWithProducts) {
  if (session->world()->size() < 8) GTEST_SKIP() << "needs eight ranks";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::string name = fmt::format("dense, {}", name_of(dtype));
    const LayoutTask overlapped = task_of(name, dense_model(), {.dtype = dtype}),
                     waiting =
                         task_of(name, dense_model(), {.dtype = dtype, .overlap = Overlap::no});
    for (const SequenceParallel rows : {SequenceParallel::no, SequenceParallel::yes}) {
      for (const Layout& layout :
           {Layout{.tensor = 2, .tensor_chunks = 3}, Layout{.tensor = 4, .tensor_chunks = 2}}) {
        const Case c{8, layout, rows};
        EXPECT_TRUE(run_with(overlapped, c).has_bits_of(run_with(waiting, c))) << c.to_string();
      }
    }
  }
}

TEST(Layouts, RoundAsOneRankDoesInBf16) {
  const LayoutTask narrow = task_of("dense, bf16", dense_model(), {.dtype = DType::bf16});
  const LayoutOutcome& alone = reference_of(narrow);
  const LayoutOutcome& exact = reference_of(task_of("dense", dense_model()));
  for (const Case& layout : {Case{2, {.tensor = 2}},
                             {2, {.tensor = 2}, SequenceParallel::no},
                             {4, {.tensor = 2}},
                             {8, {.tensor = 4}}}) {
    if (layout.ranks > session->world()->size()) continue;
    EXPECT_EQ(rounding_differences(run_with(narrow, layout), alone, exact), "")
        << layout.to_string();
  }
}

// What tensor ranks send each other in a step, from the layout alone, chunks apart: a sum or a
// gathering more or less would show.
std::map<CommOp, std::int64_t> expected_bytes(const LayoutTask& task, const Case& layout) {
  const std::int64_t ranks = layout.layout.tensor;
  const bool shares = layout.sequence_parallel == SequenceParallel::yes;
  const auto e = static_cast<std::int64_t>(size_of(task.options.dtype));  // of an activation
  constexpr std::int64_t f32 = sizeof(float);                             // of parts of a sum
  const CommOp sum = shares ? CommOp::reduce_scatter : CommOp::all_reduce;
  const auto padded = [](std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; };
  const DecoderConfig& d = task.model.decoder;
  const VisionConfig& v = task.model.vision;
  std::map<CommOp, std::int64_t> bytes;
  for (const MicroBatch& batch : task.steps[0]) {
    // Of a layer, two pairs: each sums its outputs and, in backward, its input's gradient. With
    // shared rows each gathers its input, that again for the weight gradient, and its outputs'
    // gradient.
    const auto layers = [&](std::int64_t count, std::int64_t elements) {
      bytes[sum] += count * 4 * elements * f32;
      if (shares) bytes[CommOp::all_gather] += count * 6 * elements * e;
    };
    const std::int64_t targets = padded(batch.target_count, target_multiple);
    const std::int64_t x = padded(batch.sequences * batch.length, shares ? ranks : 1) * d.hidden;
    layers(d.layers, x);
    bytes[sum] += x * e;    // looked up tokens
    bytes[sum] += x * f32;  // gradient of the head's input
    bytes[CommOp::all_gather] += ranks * targets * softmax_statistics * f32;
    if (shares) {
      bytes[CommOp::all_gather] += x * e;                   // gradient of the looked up tokens
      if (targets > 0) bytes[CommOp::all_gather] += x * e;  // the head's input
    }
    if (batch.tiles == 0) continue;
    const std::int64_t features =
        padded(batch.tiles * (v.patches() + 1), shares ? ranks : 1) * v.width;
    layers(v.layers, features);
    if (shares) bytes[CommOp::all_gather] += 2 * features * e;  // for the connector, and back
  }
  // Gradients of parameters of which each rank has seen a part, each padded to 32 elements.
  std::int64_t partial = d.layers * 2 * padded(d.head_dim, 32);
  if (shares) {
    partial += (2 * d.layers + 1) * padded(d.hidden, 32);
    partial += (2 * v.layers + 2) * 2 * padded(v.width, 32);
  }
  bytes[CommOp::all_reduce] += partial * f32;
  return bytes;
}

TEST(Bytes, OfTensorRanksFollowFromTheLayout) {
  const auto world = session->world();
  if (world->size() < 2) GTEST_SKIP() << "needs two ranks";
  const auto pair = group_of(*world, 2);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [rows, chunks] : {std::pair{SequenceParallel::no, 1},
                                       {SequenceParallel::no, 3},
                                       {SequenceParallel::yes, 1},
                                       {SequenceParallel::yes, 3}}) {
      LayoutTask task = task_of("bytes", dense_model(), {.dtype = dtype});
      task.steps.resize(1);
      const Case layout{2, {.tensor = 2, .tensor_chunks = chunks}, rows};
      const ParallelContext context(*pair, layout.layout, layout.sequence_parallel);
      Replica replica(task.model, task.options, context);
      const auto moved = [&](CommOp op) { return context[MeshGroup::tensor].statistics(op).bytes; };
      std::map<CommOp, std::int64_t> bytes;
      for (const CommOp op : {CommOp::all_reduce, CommOp::reduce_scatter, CommOp::all_gather,
                              CommOp::broadcast, CommOp::all_to_all})
        bytes[op] = -moved(op);
      replica.step(task.steps[0], {.targets = 100, .real_rows = 100, .sequences = 10}, {}, 1e-3, 1);
      for (auto& [op, count] : bytes) count += moved(op);
      std::erase_if(bytes, [](const auto& entry) { return entry.second == 0; });
      EXPECT_EQ(bytes, expected_bytes(task, layout)) << layout.to_string();
    }
  }
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
