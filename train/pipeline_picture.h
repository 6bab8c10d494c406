// The timeline of a run's pipeline, for its report: the schedule that its steps follow, as the
// simulator runs it on the FLOPs of each stage.
#pragma once

#include <filesystem>
#include <string>

#include "models/flops.h"
#include "parallel/pipeline_stages.h"

namespace orchard {

// An SVG document. `work` as in cut_pipeline; a step has so many micro-batches a pipeline.
std::string pipeline_picture(const PipelineStages& stages, const ModelConfig& model,
                             const Workload& work, int micro_batches);

// Where the trainer leaves the picture of a stage of the recipe, and the report looks for it.
std::filesystem::path pipeline_picture_path(const std::filesystem::path& run_folder, int stage);

}  // namespace orchard
