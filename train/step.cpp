#include "train/step.h"

#include <algorithm>
#include <cmath>

#include "train/pipeline_forward.h"
#include "train/pipeline_pictures.h"
#include "train/stopwatch.h"
#include "train/to_host.h"

namespace orchard {

StepRunner::StepRunner(Device& device, Stream& stream, const ParallelContext& ranks,
                       ParameterStore& store, const MultimodalModel& model,
                       const FlatShards* shards, const StepOptions& options)
    : stream_(stream),
      ranks_(ranks),
      store_(store),
      model_(model),
      overlap_(options.overlap),
      dispatcher_(ExpertDispatcher::of(device, stream, ranks, model.config().decoder.moe.experts,
                                       options.experts)),
      arena_(device),
      uploader_(device, model.config(), store.dtype(),
                options.graphs == Graphs::yes ? UploadShapes::repeating : UploadShapes::exact),
      losses_(device, ranks, model),
      scales_(device) {
  if (!shards) return;
  if (options.graphs == Graphs::yes) {
    graphs_.emplace(model, group_of_passes());
  }
  reducer_.emplace(*shards);
  gatherer_.emplace(*shards, options.overlap);
  norm_.emplace(device, ranks[MeshGroup::world], shards->counted_once());
  if (ranks.stages().ranks() > 1) {
    pipeline_.emplace(StepParts{.device = device,
                                .stream = stream,
                                .ranks = ranks,
                                .model = model,
                                .dispatcher = dispatcher_.get()},
                      uploader_, losses_);
  }
}

bool StepRunner::evaluates_together() const {
  if (!dispatcher_) return false;
  const std::vector<int> group = ranks_.mesh().group(MeshGroup::expert_layer, ranks_.rank());
  return std::ranges::any_of(group, [&](int rank) {
    return ranks_.mesh().coordinates(rank).data != ranks_.coordinates().data;
  });
}

Communicator* StepRunner::group_of_passes() const {
  const auto require_that = [&](bool possible, std::string_view what, std::string_view cure) {
    require(possible, "graphs cannot hold {} ({}): {}graphs = no", what,
            ranks_.mesh().layout().to_string(), cure);
  };
  Communicator& tensor = ranks_[MeshGroup::tensor];
  const bool layers_apart = tensor.size() > 1;
  const bool experts_apart = dispatcher_ && dispatcher_->placement().size() > 1;
  require_that(ranks_.stages().ranks() == 1, "the messages of a pipeline", "");
  require_that(!layers_apart || !experts_apart,
               "the messages of tensor ranks and those of experts at once", "tp = 1, or ");
  require_that(!experts_apart || (model_.config().decoder.moe.capacity_factor > 0 &&
                                  dispatcher_->options().messages == ExpertMessages::fixed),
               "messages of experts whose sizes the host reads",
               "capacity_factor > 0 with fixed messages, or ");
  if (!layers_apart && !experts_apart) return nullptr;
  Communicator& group = layers_apart ? tensor : ranks_[MeshGroup::expert_layer];
  require_that(group.is_captured_on(stream_.device()), "messages that pass through host memory",
               "a GPU for each rank and transport = auto, or ");
  return &group;
}

void StepRunner::run_in_turn(const StepWork& work, PhaseSeconds& seconds) {
  for (std::size_t m = 0; m < work.micro_batches.size(); ++m) {
    arena_.reset(stream_);
    const DeviceBatch batch = uploader_.upload(stream_, arena_, work.micro_batches[m]);
    Pass pass{.stream = stream_,
              .arena = arena_,
              .batch = batch,
              .scales = work.scales,
              .sizes = work.sizes,
              .replay = work.replay.empty() ? nullptr : &work.replay[m],
              .parallel = &ranks_,
              .dispatcher = dispatcher_.get(),
              .overlap = work.overlap};
    if (m + 1 == work.micro_batches.size()) pass.gradients = work.listener;
    const bool as_graph = graphs_ && !pass.replay && !pass.gradients;
    CapturedPass* const graph = as_graph ? graphs_->find(pass) : nullptr;
    MultimodalModel::Saved saved;
    {
      const Stopwatch watch(seconds.forward);
      if (graph) {
        graph->forward();
      } else {
        model_.forward(pass, saved);
      }
      losses_.read_back(pass, graph ? graph->saved() : saved, m);
    }
    const Stopwatch watch(seconds.backward);
    if (graph) {
      graph->backward();
      continue;
    }
    model_.backward(pass, saved);
    if (as_graph) graphs_->ran_plain(pass);
  }
}

void StepRunner::require_finite_norm(double norm, std::int64_t step) const {
  if (std::isfinite(norm)) return;  // a sum over all ranks, so all decide alike
  const std::optional<GradientFault> fault = reducer_->evidence().first_fault(stream_);
  const std::string cause =
      fault ? fmt::format("that of {} was not finite on {} before {}", fault->parameter,
                          ranks_.mesh().name(fault->rank), fault->operation)
            : "no rank's own gradients are";
  fail("the gradient norm of step {} is {} ({}): lower the learning rate, or look for bad data",
       step, norm, cause);
}

void StepRunner::queue_gradients(std::span<const MicroBatch> micro_batches,
                                 const StepTotals& totals, std::span<const RoutingReplay> replay,
                                 PhaseSeconds& seconds) {
  require(replay.empty() || replay.size() == micro_batches.size(),
          "{} micro-batches cannot follow the routing of {}", micro_batches.size(), replay.size());
  require(reducer_.has_value(), "this runner was made without shards, to evaluate alone");
  for (const MicroBatch& batch : micro_batches) {
    const MicroBatch& first = micro_batches.front();
    require(totals.sizes == MicroBatchSizes::any ||
                (batch.sequences == first.sequences && batch.length == first.length),
            "micro-batches of {} x {} and {} x {} rows in a step that has all of one size",
            first.sequences, first.length, batch.sequences, batch.length);
  }
  store_.zero_gradients(stream_);
  reducer_->begin(stream_);
  losses_.begin(micro_batches.size());
  uploader_.begin();
  // Alone it has nothing to send, and a graph would not call it.
  const bool listens =
      overlap_ == Overlap::yes && !(graphs_ && ranks_[MeshGroup::world].size() == 1);
  const StepWork work{.micro_batches = micro_batches,
                      .scales = scales_.upload(stream_, totals, model_.config().decoder.moe),
                      .replay = replay,
                      .listener = listens ? &*reducer_ : nullptr,
                      .overlap = overlap_,
                      .sizes = totals.sizes};
  if (pipeline_) {
    pipeline_->run(work, seconds);
  } else {
    run_in_turn(work, seconds);
  }
  const Stopwatch watch(seconds.reduce);
  reducer_->finish(stream_);
}

void StepRunner::end(StepReport& report, const StepTotals& totals) const {
  const Stopwatch watch(report.seconds.wait);
  stream_.synchronize();
  report.losses = losses_.collect(totals);
}

StepReport StepRunner::accumulate(std::span<const MicroBatch> micro_batches,
                                  const StepTotals& totals, std::span<const RoutingReplay> replay) {
  StepReport report;
  queue_gradients(micro_batches, totals, replay, report.seconds);
  end(report, totals);
  return report;
}

StepReport StepRunner::train(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                             Optimizer& optimizer, double learning_rate, std::int64_t step,
                             std::span<const RoutingReplay> replay) {
  StepReport report;
  queue_gradients(micro_batches, totals, replay, report.seconds);
  {
    const Stopwatch watch(report.seconds.reduce);
    norm_->measure(stream_, store_.flat_gradients(), optimizer.clip_norm());
  }
  {
    const Stopwatch watch(report.seconds.optimizer);
    optimizer.update(stream_, learning_rate, norm_->scale(), step, &*gatherer_);
    gatherer_->finish(stream_);
  }
  end(report, totals);
  report.gradient_norm = norm_->value();
  require_finite_norm(report.gradient_norm, step);
  return report;
}

std::vector<float> StepRunner::evaluate(const MicroBatch& micro_batch) {
  arena_.reset(stream_);
  uploader_.begin();
  const DeviceBatch batch = uploader_.upload(stream_, arena_, micro_batch, picture_content(ranks_));
  Pass pass{.stream = stream_,
            .arena = arena_,
            .batch = batch,
            .purpose = Purpose::evaluate,
            .parallel = &ranks_,
            .dispatcher = dispatcher_.get()};
  const std::vector<MultimodalModel::Saved> saved = forward_through_stages(pass, model_);
  std::vector<float> losses;
  copy_to_host(stream_, losses,
               from_last_stage(pass, model_.losses(saved.back()), batch.target_rows.shape()));
  stream_.synchronize();
  losses.resize(static_cast<std::size_t>(batch.targets));
  return losses;
}

}  // namespace orchard
