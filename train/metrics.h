// metrics.jsonl in the run folder: one JSON object a line, in the order things happened.
//
//   {"kind": "step", "stage", "step", "steps", "loss", "balance_loss", "z_loss", "grad_norm", "lr",
//    "tokens", "targets", "tiles",
//    "expert_load": [sparse layers][experts] shares of the choices,
//    "expert_dropped": [sparse layers][experts] of an expert's choices, "dropped": [sparse layers],
//    "tokens_per_s", "step_seconds", "data_seconds", "forward_seconds", "backward_seconds",
//    "pipeline_seconds" (waiting for other stages), "reduce_seconds", "optimizer_seconds",
//    "wait_seconds" (at the step's end, for the device: see PhaseSeconds), "bad_samples"}
//   {"kind": "validation", "stage", "step", "steps", "loss", "targets",
//    "categories": [{"category", "loss", "targets", "swap"}],
//    "swap": {"samples", "own", "swapped", "difference", "standard_error", "z"}, here and in a
//            category absent where pictures were not swapped,
//    "seconds"}
//
// Numbers are printed so that reading them gives the same bits. From tokens_per_s on, a step's
// fields say how this process fared; everything else a repeated run repeats.
#pragma once

#include <filesystem>
#include <vector>

#include "train/append_file.h"
#include "train/observer.h"
#include "train/run_position.h"

namespace orchard {

std::filesystem::path metrics_path(const std::filesystem::path& run_folder);

class MetricsFile : public Observer {
 public:
  // Lines of the file that lie after `resumed_after` are dropped, so that a resumed run leaves the
  // file of one that was never stopped; a run that starts afresh gives {} and starts an empty file.
  // Creates the run folder.
  MetricsFile(const std::filesystem::path& run_folder, RunPosition resumed_after);

  // Each line is with the system when the call returns. Throws Error when it cannot be written.
  void on_step(const StepEvent& event) override;
  void on_validation(const ValidationEvent& event) override;
  void on_message(const std::string&) override {}

 private:
  AppendFile file_;
};

struct RunMetrics {
  std::vector<StepEvent> steps;
  std::vector<ValidationEvent> validations;

  bool empty() const { return steps.empty() && validations.empty(); }
};

// Everything the file of a run holds, also of one that is still being written; empty where there is
// no file. Kinds of lines that it does not know are passed over. Throws Error naming the line that
// cannot be read.
RunMetrics read_metrics(const std::filesystem::path& run_folder);

}  // namespace orchard
