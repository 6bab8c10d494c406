#include "train/pipeline_step.h"

#include <algorithm>

#include "train/stopwatch.h"

namespace orchard {
PipelineStep::PipelineStep(const StepParts& parts, BatchUploader& uploader, StepLosses& losses)
    : parts_(parts),
      uploader_(uploader),
      losses_(losses),
      keeps_(static_cast<std::size_t>(parts.ranks.stages().chunks())) {}

void PipelineStep::prepare(std::size_t micro_batches) {
  if (engine_ && engine_->schedule().micro_batches == static_cast<int>(micro_batches)) return;
  engine_.emplace(parts_.device, parts_.ranks.stages().schedule(static_cast<int>(micro_batches)),
                  parts_.ranks[MeshGroup::pipeline], parts_.ranks.pipeline_gradients());
  const bool apart = engine_->schedule().splits_backward(parts_.ranks.coordinates().pipeline);
  halves_ = apart ? BackwardHalves::apart : BackwardHalves::in_turn;
}

void PipelineStep::run(const StepWork& work, PhaseSeconds& seconds) {
  prepare(work.micro_batches.size());
  work_ = &work;
  seconds_ = &seconds;
  counts_.clear();
  for (const MicroBatch& batch : work.micro_batches) counts_.push_back(uploader_.counts(batch));
  ended_.assign(keeps_.size(), 0);
  double total = 0;
  const double busy = seconds.forward + seconds.backward;
  {
    const Stopwatch watch(total);
    engine_->run(parts_.stream, *this);
  }
  seconds.pipeline += total - (seconds.forward + seconds.backward - busy);
}

LinkRange PipelineStep::links_of(int chunk) const {
  const PipelineStages& stages = parts_.ranks.stages();
  return stages.links(stages.stage_at(parts_.ranks.coordinates().pipeline, chunk));
}

PipelineModel::Message PipelineStep::output_of(int stage, int micro_batch) const {
  const ChainLink& last = parts_.model.chain().link(parts_.ranks.stages().links(stage).last - 1);
  return {.dtype = parts_.model.dtype(),
          .shape = last.output().of(counts_[static_cast<std::size_t>(micro_batch)], &parts_.ranks)};
}

PipelineStep::Keep& PipelineStep::take(int chunk, int micro_batch) {
  std::deque<Keep>& keeps = keeps_[static_cast<std::size_t>(chunk)];
  auto free = std::ranges::find(keeps, false, &Keep::taken);
  if (free == keeps.end()) {
    keeps.emplace_back(parts_.device);
    free = std::prev(keeps.end());
  }
  free->taken = true;
  live_[{chunk, micro_batch}] = &*free;
  return *free;
}

PipelineStep::Keep& PipelineStep::kept(int chunk, int micro_batch) {
  return *live_.at({chunk, micro_batch});
}

Pass PipelineStep::pass_of(Keep& keep, int micro_batch) {
  return {.stream = parts_.stream,
          .arena = keep.arena,
          .batch = keep.batch,
          .scales = work_->scales,
          .sizes = work_->sizes,
          .replay = work_->replay.empty() ? nullptr
                                          : &work_->replay[static_cast<std::size_t>(micro_batch)],
          .parallel = &parts_.ranks,
          .dispatcher = parts_.dispatcher,
          .overlap = work_->overlap};
}

ConstTensor PipelineStep::forward(int chunk, int micro_batch, ConstTensor input) {
  const Stopwatch watch(seconds_->forward);
  const LinkRange links = links_of(chunk);
  Keep& keep = take(chunk, micro_batch);
  keep.batch = uploader_.upload(parts_.stream, keep.arena,
                                work_->micro_batches[static_cast<std::size_t>(micro_batch)],
                                links.first == 0 ? PictureContent::whole : PictureContent::absent);
  keep.saved.halves = halves_;
  Pass pass = pass_of(keep, micro_batch);
  const ConstTensor output = parts_.model.forward(pass, links, input, keep.saved);
  losses_.read_back(pass, keep.saved, static_cast<std::size_t>(micro_batch));
  return output;
}

// The listener hears of falling numbers: of a chunk only when the later ones have ended.
void PipelineStep::tell_final_gradients(Pass& pass, int chunk, int micro_batch) {
  const auto all = static_cast<int>(counts_.size());
  if (micro_batch + 1 < all) return;
  if (std::all_of(ended_.begin() + chunk + 1, ended_.end(), [&](int n) { return n == all; }))
    pass.gradients = work_->listener;
}

void PipelineStep::backward_input(int chunk, int micro_batch, ConstTensor d_output,
                                  Tensor d_input) {
  const Stopwatch watch(seconds_->backward);
  Keep& keep = kept(chunk, micro_batch);
  Pass pass = pass_of(keep, micro_batch);
  if (halves_ == BackwardHalves::apart) {
    parts_.model.backward_input(pass, d_output, keep.saved, d_input);
    return;
  }
  tell_final_gradients(pass, chunk, micro_batch);
  parts_.model.backward(pass, d_output, keep.saved, d_input);
}

void PipelineStep::backward_weight(int chunk, int micro_batch) {
  const Stopwatch watch(seconds_->backward);
  Keep& keep = kept(chunk, micro_batch);
  if (halves_ == BackwardHalves::apart) {
    Pass pass = pass_of(keep, micro_batch);
    tell_final_gradients(pass, chunk, micro_batch);
    parts_.model.backward_weight(pass, keep.saved);
  }
  ++ended_[static_cast<std::size_t>(chunk)];
  live_.erase({chunk, micro_batch});
  keep.arena.reset(parts_.stream);
  keep.taken = false;
}

}  // namespace orchard
