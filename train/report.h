// report.html of a run: one file that shows what was learnt and how, from what the run left behind.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace orchard {

// What a run claims. The report says of each whether it holds.
struct ReportClaims {
  double loss_ratio = 0.9;  // held-out loss of every stage ends at or below this share of its start
  double swap_z = 3;        // at the end of the last stage, swapped pictures cost more than this
                            // many standard errors
};

struct ReportInput {
  std::string title = "Training run";
  // Shown under the title: {"recipe", "nano-moe"}, {"ranks", "2"}.
  std::vector<std::pair<std::string, std::string>> facts = {};
  ReportClaims claims = {};
  std::size_t samples_per_category = 12;  // of the gallery
};

// Reads metrics.jsonl, predictions.jsonl and resolved.ini of the run folder and writes report.html
// there, whole or not at all. Of what is missing the report says so. Throws Error when a file that
// is there cannot be read, or the report cannot be written.
void write_report(const std::filesystem::path& run_folder, const ReportInput& input);

}  // namespace orchard
