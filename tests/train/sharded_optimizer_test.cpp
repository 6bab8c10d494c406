// What happens between backward and forward under every layout of tensor, expert and data
// parallelism: sums of gradients, their norm, both optimizers on sharded state, values that come
// back, checkpoints. Gradients are made up, so that no model is needed. Run under mpirun; every
// rank also does alone what all do together.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "tests/comm/ranks_test.h"
#include "tests/parallel/faulty_communicator.h"
#include "tests/train/spread_parameters.h"
#include "train/checkpoint.h"

namespace orchard::testing {
namespace {

constexpr std::int64_t steps = 3;

struct Case {
  Layout layout;
  SequenceParallel sequence_parallel = SequenceParallel::yes;

  std::string to_string() const {
    return fmt::format("{}, sequence parallelism {}", layout.to_string(),
                       sequence_parallel == SequenceParallel::yes ? "on" : "off");
  }
};

std::vector<Case> cases_of(int ranks) {
  std::vector<Case> cases;
  for (const int tp : {1, 2, 4})
    for (const int ep : {1, 2, 4, 8})
      for (const int etp : {1, 2})
        if (ranks % tp == 0 && ranks % (ep * etp) == 0)
          cases.push_back({{.tensor = tp, .expert = ep, .expert_tensor = etp}});
  if (ranks % 4 == 0) cases.push_back({{.tensor = 4, .expert = 2}, SequenceParallel::no});
  return cases;
}

using Whole = std::map<std::string, std::vector<float>>;

struct Outcome {
  std::vector<double> norms;
  Whole tensors;
};

Outcome trained(SpreadStore& store, std::int64_t first, std::int64_t last) {
  Outcome outcome;
  for (std::int64_t step = first; step <= last; ++step) outcome.norms.push_back(store.step(step));
  outcome.tensors = store.gathered();
  return outcome;
}

Outcome reference(DType dtype, OptimizerKind kind) {
  const auto alone = make_single_communicator();
  const ParallelContext context(*alone, {});
  SpreadStore store(context, dtype, spread_optimizer(kind));
  return trained(store, 1, steps);
}

double norm_of(const std::vector<float>& values) {
  double squares = 0;
  for (const float v : values) squares += static_cast<double>(v) * v;
  return std::sqrt(squares);
}

// What is wrong with an outcome; empty where nothing is. Ranks add up squares in another order than
// one rank does, and the norm and the means that come of them enter every element: a few roundings
// of 6e-8 a step.
std::string differences(const Outcome& outcome, const Outcome& wanted) {
  constexpr double tolerance = 2e-6;
  std::string text;
  for (std::size_t s = 0; s < wanted.norms.size(); ++s) {
    if (!(std::abs(outcome.norms[s] - wanted.norms[s]) <= tolerance * wanted.norms[s]))
      text += fmt::format("norm of step {} is {}, alone {}\n", s + 1, outcome.norms[s],
                          wanted.norms[s]);
  }
  for (const auto& [name, values] : wanted.tensors) {
    std::vector<float> difference = outcome.tensors.at(name);
    if (difference.empty()) continue;  // only the first rank has them
    for (std::size_t i = 0; i < values.size(); ++i) difference[i] -= values[i];
    if (!(norm_of(difference) <= tolerance * norm_of(values)))
      text += fmt::format("{} is off by {} of {}\n", name, norm_of(difference), norm_of(values));
  }
  return text;
}

// Every rank's values are what the owners' masters round to.
void expect_values_follow(SpreadStore& store, Communicator& world, const Whole& tensors) {
  for (const Parameter* p : store.store().catalogue()) {
    std::vector<float> whole = tensors.at(p->spec.name);
    whole.resize(static_cast<std::size_t>(p->spec.shape.numel()));
    world
        .broadcast(store.stream(), Tensor(whole.data(), DType::f32, p->spec.shape, DeviceKind::cpu),
                   0)
        .wait(store.stream());
    if (!p->is_here()) continue;
    std::vector<float> slice(static_cast<std::size_t>(p->shape().numel()));
    cut(p->spec.shape, p->shard.slice, whole, slice);
    for (std::size_t i = 0; i < slice.size(); ++i) {
      const bool same = p->value.dtype() == DType::f32
                            ? p->value.data<float>()[i] == slice[i]
                            : p->value.data<bf16>()[i].bits == to_bf16(slice[i]).bits;
      ASSERT_TRUE(same) << p->spec.name << "[" << i << "]";
      if (p->spec.forward_reads == ForwardReads::master) {
        ASSERT_EQ(p->master.data<float>()[i], slice[i]) << p->spec.name;
      }
    }
  }
}

class ShardedOptimizer : public ::testing::Test {
 protected:
  std::unique_ptr<Communicator> world_ = session->world();
};

TEST_F(ShardedOptimizer, UpdatesAsOneRankDoesUnderEveryLayout) {
  for (const Case& c : cases_of(world_->size())) {
    SCOPED_TRACE(c.to_string());
    const ParallelContext context(*world_, c.layout, c.sequence_parallel);
    for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        SpreadStore store(context, dtype, spread_optimizer(kind));
        const Outcome outcome = trained(store, 1, steps);
        EXPECT_EQ(differences(outcome, reference(dtype, kind)), "");
        expect_values_follow(store, *world_, outcome.tensors);
      }
    }
  }
}

// A step takes lr · weight_decay of the weights before it off those that decay, and nothing off the
// others; without a number AdaFactor takes nothing.
TEST_F(ShardedOptimizer, AdaFactorDecaysWhatItIsToldTo) {
  constexpr double learning_rate = 1e-2, decay = 5;
  const auto alone = make_single_communicator();
  for (Communicator* ranks : {alone.get(), world_.get()}) {
    const ParallelContext context(*ranks, {});
    const auto after_a_step = [&](std::optional<double> weight_decay) {
      OptimizerConfig config = spread_optimizer(OptimizerKind::adafactor);
      config.weight_decay = weight_decay;
      SpreadStore store(context, DType::f32, config);
      const Whole before = store.gathered();
      store.step(1);
      return std::pair(before, store.gathered());
    };
    const auto [before, decayed] = after_a_step(decay);
    const Whole plain = after_a_step(0.0).second, usual = after_a_step(std::nullopt).second;
    for (const ParameterSpec& spec : spread_specs()) {
      const std::vector<float>&weights = before.at(spec.name), &a = decayed.at(spec.name),
            &b = plain.at(spec.name);
      EXPECT_EQ(usual.at(spec.name), b) << spec.name;
      if (spec.weight_decay == WeightDecay::no) {
        EXPECT_EQ(a, b) << spec.name;
        continue;
      }
      for (std::size_t i = 0; i < weights.size(); ++i) {
        // Two roundings of a weight and one of its update.
        ASSERT_NEAR(a[i], b[i] - learning_rate * decay * weights[i],
                    4e-7 * (std::abs(weights[i]) + std::abs(b[i])))
            << spec.name << "[" << i << "]";
      }
    }
  }
}

TEST_F(ShardedOptimizer, OverlapAndRepetitionChangeNoBit) {
  for (const Case& c : cases_of(world_->size())) {
    SCOPED_TRACE(c.to_string());
    const ParallelContext context(*world_, c.layout, c.sequence_parallel);
    for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
      SpreadStore first(context, DType::bf16, spread_optimizer(kind)),
          again(context, DType::bf16, spread_optimizer(kind)),
          plain(context, DType::bf16, spread_optimizer(kind));
      for (std::int64_t step = 1; step <= steps; ++step) {
        const double norm = first.step(step);
        EXPECT_EQ(again.step(step), norm);
        EXPECT_EQ(plain.step(step, {.overlap = Overlap::no}), norm);
      }
      const Whole wanted = first.gathered();
      EXPECT_EQ(again.gathered(), wanted);
      EXPECT_EQ(plain.gathered(), wanted);
    }
  }
}

// Other buckets have other shards, but the same sums.
TEST_F(ShardedOptimizer, BucketsChangeNoBitOfAGradient) {
  const ParallelContext context(*world_, {});
  const auto gradients = [&](std::int64_t bucket_bytes) {
    SpreadStore store(context, DType::f32, {}, {.bucket_bytes = bucket_bytes});
    store.set_gradients(1);
    // Not exact: each rank's part is another.
    const Tensor flat = store.store().flat_gradients();
    for (std::int64_t i = 0; i < flat.numel(); ++i)
      flat.data<float>()[i] *= 1 + 0.1f * static_cast<float>(world_->rank() + i % 7);
    GradientReducer reducer(store.shards());
    reducer.begin(store.stream());
    reducer.finish(store.stream());
    store.shards().gather_gradients(store.stream());
    return std::vector<float>(flat.data<float>(), flat.data<float>() + flat.numel());
  };
  const std::vector<float> one = gradients(1 << 30);
  EXPECT_EQ(gradients(1), one);
  EXPECT_EQ(gradients(3000), one);
}

TEST_F(ShardedOptimizer, ShardsCoverTheBuffersOnceAndBeginOnRows) {
  for (const Case& c : cases_of(world_->size())) {
    SCOPED_TRACE(c.to_string());
    const ParallelContext context(*world_, c.layout, c.sequence_parallel);
    for (const std::int64_t bytes : {1, 2000, 1 << 20}) {
      SpreadStore store(context, DType::bf16, {}, {.bucket_bytes = bytes});
      std::int64_t covered = 0;
      std::size_t last_declared = store.store().catalogue().size();
      for (const FlatBucket& bucket : store.shards().buckets()) {
        EXPECT_LT(bucket.first_declared, last_declared);
        last_declared = bucket.first_declared;
        covered += bucket.range.count;
        EXPECT_EQ(std::accumulate(bucket.counts.begin(), bucket.counts.end(), std::int64_t{0}),
                  bucket.range.count);
        std::int64_t begin = bucket.range.begin;
        for (const std::int64_t count : bucket.counts) {
          for (const Parameter* p : bucket.parameters) {
            const std::int64_t row = p->shape().numel() / p->shape()[0], at = begin - p->offset;
            EXPECT_TRUE(at <= 0 || at >= p->shape().numel() || at % row == 0) << p->spec.name;
          }
          begin += count;
        }
        // Even, but for a row and where a bucket has fewer rows than ranks.
        std::int64_t longest_row = 0;
        for (const Parameter* p : bucket.parameters)
          longest_row = std::max(longest_row, p->shape().numel() / p->shape()[0]);
        const auto ranks = static_cast<std::int64_t>(bucket.counts.size());
        for (const std::int64_t count : bucket.counts)
          EXPECT_LE(count, bucket.range.count / ranks + longest_row + 32);
      }
      EXPECT_EQ(covered, store.store().flat_gradients().numel());
    }
  }
}

// A rank's element becomes `value`; nothing where the rank does not hold the parameter.
void poison(SpreadStore& store, const std::string& name, float value) {
  const Parameter* const p = store.store().find(name);
  if (p->is_here()) p->gradient.data<float>()[p->shape().numel() / 2] = value;
}

// Sums the gradients of a step; `change` has seen this rank's own.
std::optional<GradientFault> fault_in(SpreadStore& store, const std::function<void()>& change) {
  store.set_gradients(1);
  change();
  GradientReducer reducer(store.shards());
  reducer.begin(store.stream());
  reducer.finish(store.stream());
  return reducer.evidence().first_fault(store.stream());
}

TEST_F(ShardedOptimizer, AGradientThatIsNotFiniteIsTracedToItsRankAndParameter) {
  for (const Case& c : cases_of(world_->size())) {
    SCOPED_TRACE(c.to_string());
    const ParallelContext context(*world_, c.layout, c.sequence_parallel);
    SpreadStore store(context, DType::f32, {});
    EXPECT_FALSE(fault_in(store, [] {})) << "where nothing is wrong";
    for (const Parameter* p : store.store().catalogue()) {
      const std::string& name = p->spec.name;
      // The last rank that holds it.
      double holder = p->is_here() ? world_->rank() : -1;
      world_->max_on_host({&holder, 1});
      const float value = p->declared % 2 ? std::nanf("") : -HUGE_VALF;
      const auto fault = fault_in(store, [&] {
        if (world_->rank() == static_cast<int>(holder)) poison(store, name, value);
      });
      ASSERT_TRUE(fault) << name;
      EXPECT_EQ(fault->parameter, name);
      EXPECT_EQ(fault->rank, static_cast<int>(holder)) << name;
      EXPECT_THAT(fault->operation,
                  ::testing::MatchesRegex(p->spec.sharding.expert >= 0
                                              ? "reduce-scatter [0-9]+ of group edp"
                                              : "reduce-scatter [0-9]+ of group dp"));
    }
  }
}

TEST_F(ShardedOptimizer, OfSeveralFaultsTheFirstOfBackwardIsNamed) {
  const ParallelContext context(*world_, {});
  SpreadStore store(context, DType::f32, {});
  const auto fault = fault_in(store, [&] {
    if (world_->rank() == 0) poison(store, "wq", std::nanf(""));
    if (world_->rank() + 1 == world_->size()) poison(store, "norm", std::nanf(""));
  });
  ASSERT_TRUE(fault);
  EXPECT_EQ(fault->parameter, "norm");
  EXPECT_EQ(fault->rank, world_->size() - 1);
}

// Elements of a flat buffer: each parameter is padded to 32.
std::int64_t padded_elements(const ParameterSpec& spec, const ShardingPlace& place) {
  const Shard shard = shard_of(spec.shape, spec.sharding, place);
  const std::int64_t n = shard.slice.count == 0 ? 0 : shape_of(shard.slice, spec.shape).numel();
  return (n + 31) / 32 * 32;
}

// The bytes of a step follow from the layout; a collective too many, or of too much, shows.
TEST_F(ShardedOptimizer, MovesTheBytesThatFollowFromTheLayout) {
  for (const Case& c : cases_of(world_->size())) {
    SCOPED_TRACE(c.to_string());
    const ParallelContext context(*world_, c.layout, c.sequence_parallel);
    for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
      const OptimizerConfig config = spread_optimizer(kind);
      std::map<std::string, std::map<CommOp, std::int64_t>> expected;
      std::int64_t sums = 0;
      const std::vector<ParameterSpec> specs = spread_specs();
      for (const ParameterSpec& spec : specs) {
        const Shard shard = shard_of(spec.shape, spec.sharding, context.place());
        const bool expert = spec.sharding.expert >= 0;
        const std::int64_t n = padded_elements(spec, context.place());
        auto& group = expected[expert ? "edp" : "dp"];
        group[CommOp::reduce_scatter] += 4 * n;
        group[CommOp::all_gather] += 2 * n;  // bf16
        if (spec.forward_reads == ForwardReads::master)
          group[CommOp::all_gather] += 4 * spec.shape.numel();
        if (shard.reduction.partial) {
          const int replicas = shard.reduction.replicas;
          const bool all = replicas == c.layout.tensor;
          expected[all ? "tp" : fmt::format("tp-replicas-{}", replicas)][CommOp::all_reduce] +=
              4 * n;
        }
        if (!config.is_factored(spec.shape)) continue;
        sums += spec.shape[1];
        const int cut = expert ? c.layout.expert_tensor : c.layout.tensor;
        if (spec.sharding.tensor_dim == 1 && cut > 1) sums += spec.shape[0];
      }
      if (kind == OptimizerKind::adafactor && world_->size() > 1)
        expected["dp-tp"][CommOp::all_reduce] = 4 * (sums + std::ssize(specs));
      expected["world"][CommOp::all_gather] = 8 * world_->size();  // the norm

      SpreadStore store(context, DType::bf16, config);
      const auto moved = [&] {
        std::map<std::string, std::map<CommOp, std::int64_t>> bytes;
        for (const char* group : {"dp", "edp", "tp", "tp-replicas-1", "tp-replicas-2", "dp-tp",
                                  "ep", "etp", "ep-etp", "pp", "world"})
          for (std::size_t op = 0; op < comm_ops; ++op)
            bytes[group][static_cast<CommOp>(op)] =
                world_->log().statistics(group, static_cast<CommOp>(op)).bytes;
        return bytes;
      };
      const auto before = moved();
      store.step(1);
      const auto after = moved();
      for (const auto& [group, ops] : after)
        for (const auto& [op, bytes] : ops)
          EXPECT_EQ(bytes - before.at(group).at(op), expected[group][op])
              << name_of(op) << " in " << group;
    }
  }
}

void save(const std::filesystem::path& path, SpreadStore& store, Communicator& ranks) {
  save_checkpoint(path, {.step = steps}, store.stream(), ranks, store.store(), store.optimizer());
  ranks.barrier();
}
void load(const std::filesystem::path& path, SpreadStore& store) {
  load_parameters(path, store.stream(), store.store(), PositionTables::exact);
  load_optimizer(path, store.stream(), store.optimizer());
}

// Each layout reads what the one before it in the list wrote, and that one what it wrote; the first
// is the last one's neighbour, too. Every tensor is there to the bit. And where a layout goes on, it
// goes on as if nothing had happened.
TEST_F(ShardedOptimizer, EveryLayoutReadsWhatAnotherWrote) {
  const SharedFolder folder(*world_);
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adafactor}) {
    const OptimizerConfig config = spread_optimizer(kind);
    std::optional<Whole> written;
    std::filesystem::path file;
    const Case* before = nullptr;
    int pairs = 0;
    std::vector<Case> cases = cases_of(world_->size());
    cases.push_back(cases.front());
    for (const Case& c : cases) {
      SCOPED_TRACE(c.to_string());
      const ParallelContext context(*world_, c.layout, c.sequence_parallel);
      SpreadStore store(context, DType::bf16, config);
      if (written) {
        load(file, store);
        EXPECT_EQ(store.gathered(), *written);
        expect_values_follow(store, *world_, *written);
      }
      store.step(4);
      written = store.gathered();
      file = folder / fmt::format("{}-{}.h5", static_cast<int>(kind), c.layout.to_string());
      save(file, store, *world_);
      if (before) {
        const ParallelContext other(*world_, before->layout, before->sequence_parallel);
        SpreadStore reading(other, DType::bf16, config);
        load(file, reading);
        EXPECT_EQ(reading.gathered(), *written) << "in " << before->to_string();
        ++pairs;
      }
      before = &c;
      SpreadStore resumed(context, DType::bf16, config);
      load(file, resumed);
      EXPECT_EQ(resumed.step(5), store.step(5));
      EXPECT_EQ(resumed.gathered(), store.gathered());
    }
    EXPECT_GE(pairs, world_->size() == 8 ? 6 : 1);
  }
}

// Tests of the tests: a fault in any path is seen by the comparison with one rank.
TEST_F(ShardedOptimizer, FaultsAreNoticed) {
  const Layout layout{.tensor = std::min(2, world_->size()), .expert = std::min(2, world_->size())};
  std::vector<Fault> faults;
  const auto add = [&](const char* group, CommOp op, std::initializer_list<FaultKind> kinds,
                       int call) {
    for (const FaultKind kind : kinds)
      faults.push_back({.group = group, .op = op, .kind = kind, .call = call});
  };
  const auto both = {FaultKind::missing, FaultKind::doubled};
  if (world_->size() >= 4) {
    add("dp", CommOp::reduce_scatter, both, 1);
    add("dp", CommOp::all_gather, {FaultKind::missing}, 1);
    add("edp", CommOp::reduce_scatter, both, 0);
    add("edp", CommOp::all_gather, {FaultKind::missing}, 0);
  }
  if (world_->size() >= 2) {
    add("tp", CommOp::all_reduce, both, 0);
    // AdaFactor's two sums.
    add("dp-tp", CommOp::all_reduce, both, 0);
    add("dp-tp", CommOp::all_reduce, both, 1);
  }
  for (Fault& fault : faults) {
    SCOPED_TRACE(fmt::format("{} {} of {}, kind {}", name_of(fault.op), fault.call, fault.group,
                             static_cast<int>(fault.kind)));
    FaultyCommunicator faulty(*world_, fault);
    const ParallelContext context(faulty, layout);
    SpreadStore store(context, DType::f32, spread_optimizer(OptimizerKind::adafactor));
    const Outcome outcome = trained(store, 1, steps);
    double found =
        differences(outcome, reference(DType::f32, OptimizerKind::adafactor)).empty() ? 0 : 1;
    world_->max_on_host({&found, 1});
    EXPECT_EQ(found, 1);
    EXPECT_GT(fault.seen, fault.call) << "the fault did not take place";
  }
}

TEST_F(ShardedOptimizer, AnElementThatTheNormCountsTwiceOrLeavesOutIsNoticed) {
  const Layout layout{.tensor = std::min(2, world_->size()), .expert = std::min(2, world_->size())};
  const ParallelContext context(*world_, layout);
  const Outcome wanted = reference(DType::f32, OptimizerKind::adamw);
  using Ranges = std::vector<FlatRange>;
  const auto norm = [&](const std::function<void(Ranges&, const FlatShards&)>& change) {
    SpreadStore store(context, DType::f32, spread_optimizer(OptimizerKind::adamw));
    Ranges counted = store.shards().counted_once();
    if (world_->rank() == 0) change(counted, store.shards());
    Outcome outcome{.norms = {store.step(1, {.counted = counted})}, .tensors = {}};
    return differences(outcome, {.norms = {wanted.norms[0]}, .tensors = {}});
  };
  const auto largest = [](Ranges& ranges) {
    return std::ranges::max_element(ranges, {}, &FlatRange::count);
  };
  EXPECT_EQ(norm([](Ranges&, const FlatShards&) {}), "");
  EXPECT_NE(norm([&](Ranges& r, const FlatShards&) {
              r.push_back({largest(r)->begin + 3, 1});
            }),
            "");
  EXPECT_NE(norm([&](Ranges& r, const FlatShards&) { --largest(r)->count; }), "");
  EXPECT_NE(norm([](Ranges& ranges, const FlatShards& shards) {
              const auto experts = std::ranges::find_if(shards.buckets(), [](const auto& bucket) {
                return bucket.group == MeshGroup::expert_data && bucket.own.count > 0;
              });
              ASSERT_NE(experts, shards.buckets().end());
              std::erase_if(ranges,
                            [&](const FlatRange& r) { return r.begin == experts->own.begin; });
            }),
            "")
      << "an expert left out";
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
