#include "launch/run_summary.h"

#include <fmt/format.h>

#include "launch/parameter_counts.h"
#include "train/layout_facts.h"
#include "train/schedule.h"

namespace orchard {
namespace {

std::string count_text(double count) {
  if (count >= 1e9) return fmt::format("{:.3f}B", count / 1e9);
  if (count >= 1e6) return fmt::format("{:.2f}M", count / 1e6);
  return fmt::format("{:.1f}k", count / 1e3);
}

std::string count_text(std::int64_t count) {
  return count_text(static_cast<double>(count));
}

std::string model_text(const ModelConfig& model) {
  const ParameterCounts counts = count_parameters(model);
  std::string text = fmt::format("model: {} parameters", count_text(counts.total()));
  if (counts.inactive > 0) text += fmt::format(", {} active", count_text(counts.active()));
  text += " (";
  if (model.has_vision()) {
    text += fmt::format("vision {}, connector {}, ", count_text(counts.vision),
                        count_text(counts.connector));
  }
  return text + fmt::format("embedding {}, decoder {})\n", count_text(counts.embedding),
                            count_text(counts.decoder));
}

std::string stage_text(const RunConfig& run, const StageConfig& stage, int ranks) {
  const double law =
      learning_rate_law(static_cast<double>(dense_backbone_parameters(run.model.decoder)));
  const std::int64_t rows = stage.global_batch * stage.sequence_length;
  const std::int64_t micro_batch = micro_batch_of(run, stage, ranks);
  return fmt::format(
      "stage {}: {} steps of {} rows ({} in all), {} micro-batches of {} sequences a replica and "
      "step, peak learning rate {:.3g}{}\n",
      stage.number, stage.steps, rows, count_text(stage.steps * rows),
      stage.global_batch / micro_batch / run.layout.data(ranks), micro_batch,
      stage.peak_lr > 0 ? stage.peak_lr : law, stage.peak_lr > 0 ? "" : " (the law)");
}

}  // namespace

std::string run_summary(const RunConfig& run, int ranks) {
  std::string text;
  // Without a training set the tokenizer, and so the embedding, may still be unknown.
  if (run.model.decoder.vocabulary > 0) text += model_text(run.model);
  for (const StageConfig& stage : run.stages) text += stage_text(run, stage, ranks);
  return text;
}

}  // namespace orchard
