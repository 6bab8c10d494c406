// A toy in training over steps: made-up micro-batches dealt to the ranks, checkpoints.
#pragma once

#include <filesystem>

#include "tests/parallel/toy_batches.h"
#include "tests/train/replica.h"
#include "train/checkpoint.h"

namespace orchard::testing {

// Ranks see pictures next to ranks that see text alone, whose vision tower then has nothing to send
// early; the last micro-batch of each, the one that overlaps, is of either kind.
inline constexpr ToyShape training_shapes[] = {
    {.sequences = 2, .length = 13, .tiles = 1, .padding = 3},
    {.sequences = 1, .length = 9},
    {.sequences = 1, .length = 11},
    {.sequences = 2, .length = 7, .padding = 2},
    {.sequences = 1, .length = 3},
    {.sequences = 1, .length = 12, .tiles = 2},
    {.sequences = 1, .length = 1},
    {.sequences = 3, .length = 5, .padding = 1},
};

// Trains a model on this rank's share of the micro-batches of each step.
class Training {
 public:
  Training(const ModelConfig& model, const ReplicaOptions& options, Communicator& ranks,
           const Layout& layout = {}, const PipelineStages& stages = {})
      : context_(ranks, layout, SequenceParallel::yes, stages),
        model_(model),
        replica_(model, options, context_) {}

  // What a micro-batch holds before the step.
  using Tamper = std::function<void(MicroBatch&, std::size_t index)>;

  StepReport step(std::int64_t number, const Tamper& tamper = {}) {
    std::vector<MicroBatch> all;
    StepTotals totals;
    for (std::size_t i = 0; i < std::size(training_shapes); ++i) {
      const MicroBatch& batch = all.emplace_back(
          toy_micro_batch(model_, training_shapes[i], fmt::format("{}.{}", number % 3, i)));
      if (tamper) tamper(all.back(), i);
      totals.targets += batch.target_count;
      totals.sequences += batch.sequences;
      for (const std::int32_t rows : batch.real_rows) totals.real_rows += rows;
    }
    const auto ranks = static_cast<std::size_t>(context_.mesh().data());
    const std::size_t share = all.size() / ranks;
    const auto mine = std::span(all).subspan(
        static_cast<std::size_t>(context_.coordinates().data) * share, share);
    return replica_.step(mine, totals, {}, 3e-3, number);
  }

  void save(const std::filesystem::path& path) {
    Communicator& world = context_[MeshGroup::world];
    save_checkpoint(path, {}, replica_.stream(), world, replica_.store(), replica_.optimizer());
    world.barrier();
  }
  void load(const std::filesystem::path& path) {
    load_parameters(path, replica_.stream(), replica_.store(), PositionTables::exact);
    load_optimizer(path, replica_.stream(), replica_.optimizer());
  }

  const ParallelContext& ranks() const { return context_; }
  Replica& replica() { return replica_; }

  // All values of this rank, bit by bit.
  std::vector<std::byte> values() {
    const Tensor all = replica_.store().flat_values();
    const auto* const bytes = static_cast<const std::byte*>(all.raw());
    return {bytes, bytes + all.size_bytes()};
  }

 private:
  ParallelContext context_;
  ModelConfig model_;
  Replica replica_;
};

}  // namespace orchard::testing
