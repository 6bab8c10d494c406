// How it ran: expert load, speed and time.
#include <fmt/format.h>

#include <algorithm>

#include "data/atomic_file.h"
#include "train/chart.h"
#include "train/expert_load.h"
#include "train/html.h"
#include "train/pipeline_picture.h"
#include "train/report_sections.h"
#include "train/terminal.h"

namespace orchard {
namespace {

constexpr std::size_t load_columns = 80;  // a pixel or two each at the width of a small chart

// Load of each expert over the mean load, [column][expert], averaged over the steps of a column.
std::vector<std::vector<double>> load_history(std::span<const StepEvent> steps, std::size_t layer) {
  const std::size_t columns = std::min(steps.size(), load_columns);
  std::vector<std::vector<double>> history(columns);
  for (std::size_t column = 0; column < columns; ++column) {
    const std::size_t first = column * steps.size() / columns,
                      last = (column + 1) * steps.size() / columns;
    for (std::size_t i = first; i < last; ++i) {
      const auto& load = steps[i].report.losses.expert_load;
      if (layer >= load.size()) continue;
      const std::vector<double>& shares = load[layer];
      history[column].resize(shares.size());
      for (std::size_t expert = 0; expert < shares.size(); ++expert)
        history[column][expert] +=
            shares[expert] * static_cast<double>(shares.size()) / static_cast<double>(last - first);
    }
  }
  return history;
}

std::string stage_experts(const StageRecord& stage) {
  if (stage.trained.empty()) return {};
  const LossReport& last = stage.trained.back().report.losses;
  if (last.expert_load.empty()) return {};
  std::string html = "<div class=\"pair\">\n";
  for (std::size_t layer = 0; layer < last.expert_load.size(); ++layer) {
    html += heat_map({.title = fmt::format("Stage {}, sparse layer {}", stage.number, layer + 1),
                      .note = fmt::format(
                          "at the end: busiest expert {:.2f}, {} without a token, dropped {:.1f}%",
                          load_imbalance(last.expert_load[layer]),
                          dead_experts(last.expert_load[layer]), 100 * last.dropped[layer]),
                      .x_label = "step",
                      .y_label = "expert",
                      .x_end = static_cast<double>(stage.trained.back().step),
                      .columns = load_history(stage.trained, layer)});
  }
  return html + "</div>\n";
}

std::vector<std::string> speed_row(const StageRecord& stage) {
  double tokens = 0, tiles = 0, total = 0, data = 0, validation = 0;
  PhaseSeconds phases;
  for (const StepEvent& event : stage.trained) {
    const PhaseSeconds& s = event.report.seconds;
    tokens += static_cast<double>(event.tokens);
    tiles += static_cast<double>(event.tiles);
    total += event.step_seconds;
    data += event.data_seconds;
    phases.forward += s.forward;
    phases.backward += s.backward;
    phases.pipeline += s.pipeline;
    phases.reduce += s.reduce;
    phases.optimizer += s.optimizer;
    phases.wait += s.wait;
  }
  for (const ValidationEvent& event : stage.validated) validation += event.seconds;
  const auto share = [&](double seconds) {
    return total > 0 ? fmt::format("{:.1f}%", 100 * seconds / total) : "";
  };
  return {fmt::format("stage {}", stage.number),
          fmt::format("{}/{}", stage.trained.size(), stage.steps),
          format_count(tokens),
          format_count(tiles),
          format_duration(total),
          total > 0 ? format_count(tokens / total) : "",
          share(data),
          share(phases.forward),
          share(phases.backward),
          share(phases.pipeline),
          share(phases.reduce),
          share(phases.optimizer),
          share(phases.wait),
          format_duration(validation),
          stage.trained.empty() ? "" : std::to_string(stage.trained.back().bad_samples)};
}

}  // namespace

std::string experts_section(std::span<const StageRecord> stages) {
  std::string maps;
  for (const StageRecord& stage : stages) maps += stage_experts(stage);
  if (maps.empty()) return {};
  return "<h2>Expert load</h2>\n<p class=\"soft\">Share of the router's choices that each expert "
         "got, before capacity, over the even share. Blank is even; <span class=\"train\">blue"
         "</span> is less, full at none; <span class=\"held\">orange</span> is more, full at twice "
         "the even share or above.</p>\n" +
         maps;
}

std::string pipeline_section(const std::filesystem::path& run_folder,
                             std::span<const StageRecord> stages) {
  std::string pictures;
  for (const StageRecord& stage : stages) {
    const auto path = pipeline_picture_path(run_folder, stage.number);
    if (std::filesystem::exists(path))
      pictures += fmt::format("<h3>Stage {}</h3>\n{}\n", stage.number, read_text(path));
  }
  if (pictures.empty()) return {};
  return "<h2>Pipeline</h2>\n<p class=\"soft\">What each rank of a pipeline does in a step, as the "
         "schedule has it where time follows the FLOPs of each stage.</p>\n" +
         pictures;
}

std::string speed_section(std::span<const StageRecord> stages) {
  HtmlTable table{.header = {"", "steps", "tokens", "tiles", "time", "tokens/s", "data wait",
                             "forward", "backward", "pipeline wait", "reduce", "optimizer",
                             "last wait", "validation", "bad"}};
  for (const StageRecord& stage : stages) table.rows.push_back(speed_row(stage));
  return "<h2>Speed</h2>\n<p class=\"soft\">Tokens are rows that are not padding, of all ranks; "
         "tokens/s and shares are of the time of training steps, as rank 0 saw it: its "
         "host queues the work of a GPU, and sees the time that this takes in the last wait. Bad "
         "samples are those of rank 0.</p>\n" +
         html_table(table);
}

}  // namespace orchard
