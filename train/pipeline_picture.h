// The timeline of a run's pipeline, for its report: the schedule that its steps follow, as the
// simulator runs it on the costs of each stage.
#pragma once

#include <filesystem>
#include <string>

#include "train/pipeline_cut.h"

namespace orchard {

// What to draw. A step has so many micro-batches a pipeline.
struct PipelinePicture {
  PipelineStages stages;
  std::span<const LinkCost> costs;  // of every link, as cut_pipeline has them
  std::span<const LinkHalves> halves;
  PipelineBalance costs_are = PipelineBalance::counted;
  int micro_batches = 1;
};

// An SVG document.
std::string pipeline_picture(const PipelinePicture& picture);

// Where the trainer leaves the picture of a stage of the recipe, and the report looks for it.
std::filesystem::path pipeline_picture_path(const std::filesystem::path& run_folder, int stage);

}  // namespace orchard
