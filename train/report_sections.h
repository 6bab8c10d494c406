// Private to the report: its sections, each a piece of HTML that begins with its heading.
#pragma once

#include <span>
#include <string>

#include "train/metrics.h"
#include "train/predictions.h"
#include "train/report.h"

namespace orchard {

// What one stage left in the metrics.
struct StageRecord {
  int number = 0;
  std::int64_t steps = 0;  // planned
  std::vector<StepEvent> trained;
  std::vector<ValidationEvent> validated;
};

// By rising stage.
std::vector<StageRecord> by_stage(const RunMetrics& metrics);

std::string headline_section(std::span<const StageRecord> stages, const ReportClaims& claims);
std::string curves_section(std::span<const StageRecord> stages);
// Empty for dense models.
std::string experts_section(std::span<const StageRecord> stages);
// Empty without pipelines.
std::string pipeline_section(const std::filesystem::path& run_folder,
                             std::span<const StageRecord> stages);
std::string speed_section(std::span<const StageRecord> stages);
std::string gallery_section(std::span<const Prediction> predictions,
                            std::size_t samples_per_category);

}  // namespace orchard
