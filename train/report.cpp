#include "train/report.h"

#include <fmt/format.h>

#include <map>

#include "data/atomic_file.h"
#include "train/html.h"
#include "train/report_sections.h"
#include "train/terminal.h"

namespace orchard {
namespace {

std::string header(const ReportInput& input, std::span<const StageRecord> stages) {
  double tokens = 0, seconds = 0;
  std::size_t steps = 0;
  for (const StageRecord& stage : stages) {
    steps += stage.trained.size();
    for (const StepEvent& event : stage.trained) {
      tokens += static_cast<double>(event.tokens);
      seconds += event.step_seconds;
    }
    for (const ValidationEvent& event : stage.validated) seconds += event.seconds;
  }
  auto facts = input.facts;
  if (steps > 0) {
    facts.push_back({"steps", std::to_string(steps)});
    facts.push_back({"tokens", format_count(tokens)});
    facts.push_back({"time", format_duration(seconds)});
  }
  std::string html = "<h1>" + html_escape(input.title) + "</h1>\n<ul class=\"facts\">";
  for (const auto& [name, value] : facts)
    html += fmt::format("<li>{} <b>{}</b></li>", html_escape(name), html_escape(value));
  return html + "</ul>\n";
}

std::string config_section(const std::filesystem::path& path) {
  std::string html = "<h2>Configuration</h2>\n";
  if (!std::filesystem::exists(path))
    return html + "<p class=\"soft\">The run folder holds no resolved.ini.</p>\n";
  return html + "<details><summary>resolved.ini: every option of the run</summary><pre>" +
         html_escape(read_text(path)) + "</pre></details>\n";
}

}  // namespace

std::vector<StageRecord> by_stage(const RunMetrics& metrics) {
  std::map<int, StageRecord> stages;
  const auto stage_of = [&](const auto& event) -> StageRecord& {
    StageRecord& stage = stages[event.stage];
    stage.number = event.stage;
    stage.steps = event.steps;
    return stage;
  };
  for (const StepEvent& event : metrics.steps) stage_of(event).trained.push_back(event);
  for (const ValidationEvent& event : metrics.validations)
    stage_of(event).validated.push_back(event);
  std::vector<StageRecord> records;
  records.reserve(stages.size());
  for (auto& [number, stage] : stages) records.push_back(std::move(stage));
  return records;
}

void write_report(const std::filesystem::path& run_folder, const ReportInput& input) {
  const std::vector<StageRecord> stages = by_stage(read_metrics(run_folder));
  const std::vector<Prediction> predictions = read_predictions(run_folder);
  std::string body = header(input, stages);
  if (stages.empty()) {
    body +=
        "<h2>Training</h2>\n<p class=\"soft\">The run folder holds no metrics.jsonl with "
        "anything in it: nothing was trained here yet.</p>\n";
  } else {
    body += headline_section(stages, input.claims) + curves_section(stages) +
            experts_section(stages) + pipeline_section(run_folder, stages) + speed_section(stages);
  }
  body += gallery_section(predictions, input.samples_per_category) +
          config_section(run_folder / "resolved.ini");
  write_file(run_folder / "report.html", html_page(input.title, body));
}

}  // namespace orchard
