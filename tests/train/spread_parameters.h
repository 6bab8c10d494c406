// Parameters of every kind of sharding with gradients that are made up, and what one rank makes of
// them: to test what lies between backward and forward without a model.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "parallel/gradient_norm.h"
#include "parallel/random.h"
#include "train/optimizer.h"

namespace orchard::testing {

inline constexpr std::int64_t expert_count = 8;

inline std::vector<ParameterSpec> spread_specs() {
  constexpr auto yes = WeightDecay::yes;
  std::vector<ParameterSpec> specs{
      {.name = "positions", .shape = {7, 5}},
      {.name = "table", .shape = {48, 12}, .weight_decay = yes, .sharding = {.tensor_dim = 0}},
      {.name = "wq", .shape = {16, 12}, .weight_decay = yes, .sharding = {.tensor_dim = 0}},
      {.name = "wk",
       .shape = {8, 12},
       .weight_decay = yes,
       .sharding = {.tensor_dim = 0, .parts = 2, .gradient = GradientOf::local_heads}},
      {.name = "wo", .shape = {12, 16}, .weight_decay = yes, .sharding = {.tensor_dim = 1}},
      {.name = "bias", .shape = {20}, .sharding = {.tensor_dim = 0}},
      {.name = "norm", .shape = {13}, .sharding = {.gradient = GradientOf::local_rows}},
      {.name = "router",
       .shape = {expert_count, 12},
       .sharding = {.gradient = GradientOf::local_rows},
       .forward_reads = ForwardReads::master},
  };
  for (int e = 0; e < expert_count; ++e) {
    const auto expert = [&](const char* name, Shape shape, int dim) {
      specs.push_back(
          {.name = fmt::format("experts.{}.{}", e, name),
           .shape = shape,
           .weight_decay = yes,
           .sharding = {
               .tensor_dim = dim, .expert = e, .experts = static_cast<int>(expert_count)}});
    };
    expert("up", {24, 12}, 0);
    expert("down", {12, 24}, 1);
  }
  return specs;
}

// Both optimizers; the threshold factors every matrix but the table of positions.
inline OptimizerConfig spread_optimizer(OptimizerKind kind) {
  return {.kind = kind, .weight_decay = 0.1, .factor_threshold = 8};
}

// The whole gradient of a parameter in a step, the same on any rank. Small multiples of a power of
// two, and different in size from row to row and column to column: shares of it that are powers of
// two, and their sums, are exact.
inline std::vector<float> whole_gradient(const ParameterSpec& spec, std::int64_t step) {
  const CounterRandom random(17, spec.name + std::to_string(step));
  const std::int64_t n = spec.shape.numel(), row = n / spec.shape[0];
  std::vector<float> gradient(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    const double size = std::exp2(static_cast<double>((i / row) % 3 + 2 * (i % row % 2)));
    const double value = std::round(512 * random.normal(static_cast<std::uint64_t>(i)));
    gradient[static_cast<std::size_t>(i)] = static_cast<float>(value * size / 4096);
  }
  return gradient;
}

// A rank's store, shards and optimizer.
class SpreadStore {
 public:
  SpreadStore(const ParallelContext& ranks, DType dtype, const OptimizerConfig& config,
              const FlatShardOptions& options = {.bucket_bytes = 2000})
      : device_(make_cpu_device({.threads = 1})),
        stream_(device_->make_stream()),
        ranks_(ranks),
        store_(ranks.place()) {
    for (const ParameterSpec& spec : spread_specs()) store_.declare(spec);
    store_.allocate(*device_, *stream_, dtype, ParameterUse::training_on_shards);
    shards_ = std::make_unique<FlatShards>(*device_, *stream_, ranks, store_, options);
    store_.initialise(*stream_, 5, 10);
    optimizer_ = std::make_unique<Optimizer>(*device_, *stream_, store_, config, shards_.get());
  }

  // This rank's part of the step's gradients: an equal share among those whose parts are added up.
  void set_gradients(std::int64_t step) {
    store_.zero_gradients(*stream_);
    for (const Parameter& p : store_.parameters()) {
      const std::vector<float> whole = whole_gradient(p.spec, step);
      std::vector<float> slice(static_cast<std::size_t>(p.shape().numel()));
      cut(p.spec.shape, p.shard.slice, whole, slice);
      const Reduction& reduction = p.shard.reduction;
      const bool expert = reduction.parameter_class == ParameterClass::expert;
      const int sharers = (expert ? ranks_.mesh().expert_data() : ranks_.mesh().data()) *
                          (reduction.partial ? reduction.replicas : 1);
      for (float& value : slice) value /= static_cast<float>(sharers);
      stream_->copy(p.gradient, ConstTensor(slice.data(), DType::f32, p.shape(), DeviceKind::cpu));
    }
    stream_->synchronize();
  }

  struct StepOptions {
    Overlap overlap = Overlap::yes;
    std::vector<FlatRange> counted;  // in the norm; empty: what should be
  };
  // Returns the norm.
  double step(std::int64_t number, const StepOptions& options) {
    set_gradients(number);
    GradientReducer reducer(*shards_);
    reducer.begin(*stream_);
    if (options.overlap == Overlap::yes)
      for (std::size_t declared = store_.catalogue().size(); declared-- > 0;)
        reducer.final_from(declared);
    reducer.finish(*stream_);
    const std::vector<FlatRange> counted =
        options.counted.empty() ? shards_->counted_once() : options.counted;
    GradientNorm norm(*device_, ranks_[MeshGroup::world], counted);
    norm.measure(*stream_, store_.flat_gradients(), optimizer_->clip_norm());
    ValueGatherer gatherer(*shards_, options.overlap);
    optimizer_->update(*stream_, 1e-2, norm.scale(), number, &gatherer);
    gatherer.finish(*stream_);
    stream_->synchronize();
    return norm.value();
  }
  double step(std::int64_t number) { return step(number, {}); }

  // Masters and optimizer state, whole and by name, on the first rank; empty vectors elsewhere.
  std::map<std::string, std::vector<float>> gathered() {
    Communicator& world = ranks_[MeshGroup::world];
    std::map<std::string, std::vector<float>> all;
    for (const Parameter* p : store_.catalogue()) {
      const bool counts = p->is_here() && p->shard.replica == 0;
      all[p->spec.name] = gather_to_first(*stream_, world, owned_shard(*p), p->owned.master,
                                          counts ? Counted::yes : Counted::no);
    }
    for (const Optimizer::NamedShard& s : optimizer_->state())
      all[s.name] = gather_to_first(*stream_, world, s.shard, s.tensor, s.counted);
    return all;
  }

  Stream& stream() { return *stream_; }
  ParameterStore& store() { return store_; }
  FlatShards& shards() { return *shards_; }
  Optimizer& optimizer() { return *optimizer_; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  const ParallelContext& ranks_;
  ParameterStore store_;
  std::unique_ptr<FlatShards> shards_;
  std::unique_ptr<Optimizer> optimizer_;
};

}  // namespace orchard::testing
