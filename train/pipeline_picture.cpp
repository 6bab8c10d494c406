#include "train/pipeline_picture.h"

#include "train/timeline.h"

namespace orchard {

std::string pipeline_picture(const PipelinePicture& picture) {
  const PipelineStages& stages = picture.stages;
  const PipelineSchedule schedule = stages.schedule(picture.micro_batches);
  const PipelineTimeline timeline =
      simulate(schedule, pipeline_costs(stages, schedule, picture.costs, picture.halves));
  const TimelinePanel panel{
      .title = fmt::format("{}, {} micro-batches", stages.to_string(), picture.micro_batches),
      .note =
          fmt::format("by {}: ranks busy {:.1f} %",
                      picture.costs_are == PipelineBalance::measured ? "measured times" : "FLOPs",
                      100 * timeline.utilisation()),
      .schedule = &schedule,
      .timeline = &timeline};
  return timeline_svg({&panel, 1});
}

std::filesystem::path pipeline_picture_path(const std::filesystem::path& run_folder, int stage) {
  return run_folder / fmt::format("pipeline-stage{}.svg", stage);
}

}  // namespace orchard
