// A model in training, and what its routers chose: to compare one run with another in which no
// expert may change places.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/parameter_collectives.h"
#include "train/pipeline_forward.h"
#include "train/step.h"

namespace orchard::testing {

// What the reference stores of one sparse layer and micro-batch.
struct Routing {
  std::vector<std::int32_t> chosen;  // [rows, k]
  std::vector<float> margins;        // [rows]
};

// Compares the routers' choices over a run, by rows of real tokens.
struct ChoiceComparison {
  std::int64_t rows = 0, clear = 0, flipped = 0;  // flipped: another choice despite a clear margin

  // Two of a router's scores closer than this may swap places under another order of summation
  // (mm15.md §10).
  static constexpr float clear_margin = 1e-4f;

  void add(const Routing& own, const Routing& reference) {
    const std::size_t k = reference.chosen.size() / reference.margins.size();
    for (std::size_t row = 0; row < reference.margins.size(); ++row) {
      const auto experts = [&](const Routing& routing) {
        const auto first = routing.chosen.begin() + static_cast<std::ptrdiff_t>(row * k);
        std::vector<std::int32_t> sorted(first, first + static_cast<std::ptrdiff_t>(k));
        std::sort(sorted.begin(), sorted.end());
        return sorted;
      };
      const auto wanted = experts(reference);
      if (wanted.front() < 0) continue;  // padding
      ++rows;
      if (reference.margins[row] <= clear_margin) continue;
      ++clear;
      flipped += experts(own) != wanted;
    }
  }
};

struct ReplicaOptions {
  std::uint64_t seed = 3;
  DType dtype = DType::f32;
  OptimizerConfig optimizer;
  ExpertDispatchOptions experts = {};
  FlatShardOptions shards;
  Overlap overlap = Overlap::yes;
  // What a test does to the parameters before they get their memory.
  std::function<void(ParameterStore&)> meddle = {};
};

// Of the micro-batches of a step, of all ranks.
inline MicroBatchSizes sizes_of(std::span<const MicroBatch> step) {
  const bool alike = std::ranges::all_of(step, [&](const MicroBatch& batch) {
    return batch.sequences == step[0].sequences && batch.length == step[0].length;
  });
  return alike ? MicroBatchSizes::alike : MicroBatchSizes::any;
}

class Replica {
 public:
  // `ranks` must outlive it.
  Replica(const ModelConfig& config, const ReplicaOptions& options, const ParallelContext& ranks)
      : ranks_(ranks),
        device_(make_cpu_device({.threads = 1})),
        stream_(device_->make_stream()),
        arena_(*device_),
        store_(ranks.place()),
        model_(store_, config),
        uploader_(*device_, config, options.dtype) {
    if (options.meddle) options.meddle(store_);
    store_.allocate(*device_, *stream_, options.dtype, ParameterUse::training_on_shards);
    shards_ = std::make_unique<FlatShards>(*device_, *stream_, ranks, store_, options.shards);
    model_.prepare(*device_, *stream_);
    store_.initialise(*stream_, options.seed);
    optimizer_ =
        std::make_unique<Optimizer>(*device_, *stream_, store_, options.optimizer, shards_.get());
    runner_ = std::make_unique<StepRunner>(
        *device_, *stream_, ranks, store_, model_, shards_.get(),
        StepOptions{.overlap = options.overlap, .experts = options.experts});
  }

  // What the routers prefer with today's weights, of each sparse layer; empty for those of other
  // pipeline stages.
  std::vector<Routing> route(const MicroBatch& micro_batch) {
    if (model_.decoder().routers().empty()) return {};
    arena_.reset(*stream_);
    uploader_.begin();
    const DeviceBatch batch = uploader_.upload(*stream_, arena_, micro_batch);
    Pass pass{.stream = *stream_,
              .arena = arena_,
              .batch = batch,
              .parallel = &ranks_,
              .dispatcher = runner_->dispatcher()};
    std::vector<Routing> routing(model_.decoder().routers().size());
    for (const MultimodalModel::Saved& saved : forward_through_stages(pass, model_)) {
      std::size_t next = model_.first_sparse_layer(saved);
      for (const RouterStatistics& layer : model_.router_statistics(saved)) {
        const auto* chosen = layer.chosen.data<std::int32_t>();
        const auto* margins = layer.margins.data<float>();
        routing[next++] = {{chosen, chosen + layer.chosen.numel()},
                           {margins, margins + layer.margins.numel()}};
      }
    }
    return routing;
  }

  // One step in which each micro-batch follows its routing; routers choose where there is none.
  StepReport step(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                  std::span<const std::vector<Routing>> routing, double learning_rate,
                  std::int64_t step) {
    const auto routers = model_.decoder().routers();
    std::vector<RoutingReplay> replay(routers.empty() ? 0 : routing.size());
    for (std::size_t m = 0; m < replay.size(); ++m) {
      for (std::size_t layer = 0; layer < routers.size(); ++layer) {
        const Routing& wanted = routing[m][layer];
        const auto rows = static_cast<std::int64_t>(wanted.margins.size());
        replay[m][routers[layer]] =
            ConstTensor(wanted.chosen.data(), DType::i32, {rows, model_.config().decoder.moe.top_k},
                        DeviceKind::cpu);
      }
    }
    has_all_gradients_ = false;
    return runner_->train(micro_batches, totals, *optimizer_, learning_rate, step, replay);
  }

  // A parameter's whole gradient, as the last step left it, on every rank. `ranks` gather it from
  // the slices.
  std::vector<float> gradient(const Parameter& parameter, const ParallelContext& ranks) {
    if (!has_all_gradients_) shards_->gather_gradients(*stream_);
    has_all_gradients_ = true;
    const Sharding& sharding = parameter.spec.sharding;
    const bool is_here = ranks.place().has(sharding);
    std::vector<float> whole(static_cast<std::size_t>(parameter.spec.shape.numel()));
    if (is_here) whole = gather_whole(*stream_, ranks, parameter.spec, parameter.gradient);
    if (ranks.stages().ranks() == 1) return whole;
    std::vector<float> first = whole;
    ranks[MeshGroup::pipeline]
        .broadcast(*stream_,
                   Tensor(first.data(), DType::f32, parameter.spec.shape, DeviceKind::cpu),
                   ranks.stages().rank_of(sharding.link))
        .wait(*stream_);
    if (is_here && first != whole) unequal_copies_ += parameter.spec.name + " ";
    return first;
  }

  // Of those that two pipeline stages hold: whose copies had other gradients than the first ones.
  const std::string& unequal_copies() const { return unequal_copies_; }

  // See StepRunner::evaluate.
  std::vector<float> evaluate(const MicroBatch& batch) { return runner_->evaluate(batch); }

  ParameterStore& store() { return store_; }
  Device& device() { return *device_; }
  Stream& stream() { return *stream_; }
  const FlatShards& shards() const { return *shards_; }
  Optimizer& optimizer() { return *optimizer_; }

 private:
  const ParallelContext& ranks_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  Arena arena_;
  ParameterStore store_;
  MultimodalModel model_;
  BatchUploader uploader_;
  std::unique_ptr<FlatShards> shards_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<StepRunner> runner_;
  bool has_all_gradients_ = false;  // of the last step
  std::string unequal_copies_;
};

}  // namespace orchard::testing
