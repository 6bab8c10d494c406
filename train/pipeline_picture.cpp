#include "train/pipeline_picture.h"

#include "train/timeline.h"

namespace orchard {
namespace {

// In units of the mean time of a rank for one direction of a micro-batch. Either half of backward
// costs half of it. A micro-batch saves the same at every stage.
PipelineCosts costs_of(const PipelineStages& stages, const ModelConfig& model,
                       const Workload& work) {
  const std::vector<FlopCounts> links = count_link_flops(model, work);
  double all = 0;
  for (const FlopCounts& link : links) all += link.training;
  const double unit = all / (3 * stages.ranks()), saved = 1.0 / stages.chunks();
  PipelineCosts costs;
  for (int stage = 0; stage < stages.count(); ++stage) {
    double forward = 0, backward = 0;
    for (int i = stages.links(stage).first; i < stages.links(stage).last; ++i) {
      const FlopCounts& link = links[static_cast<std::size_t>(i)];
      forward += link.forward / unit;
      backward += (link.training - link.forward) / unit;
    }
    costs.stages.push_back({.forward = forward,
                            .backward_input = backward / 2,
                            .backward_weight = backward / 2,
                            .saved_forward = saved,
                            .saved_backward = saved,
                            .saved_weight = saved});
  }
  return costs;
}

}  // namespace

std::string pipeline_picture(const PipelineStages& stages, const ModelConfig& model,
                             const Workload& work, int micro_batches) {
  const PipelineSchedule schedule = stages.schedule(micro_batches);
  const PipelineTimeline timeline = simulate(schedule, costs_of(stages, model, work));
  double busy = 0;
  for (const RankTimeline& rank : timeline.ranks) busy += rank.busy;
  const TimelinePanel panel{
      .title = fmt::format("{}, {} micro-batches", stages.to_string(), micro_batches),
      .note = fmt::format("by FLOPs: ranks busy {:.1f} %",
                          100 * busy / (timeline.makespan() * stages.ranks())),
      .schedule = &schedule,
      .timeline = &timeline};
  return timeline_svg({&panel, 1});
}

std::filesystem::path pipeline_picture_path(const std::filesystem::path& run_folder, int stage) {
  return run_folder / fmt::format("pipeline-stage{}.svg", stage);
}

}  // namespace orchard
