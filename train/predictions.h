// predictions.jsonl in the run folder: what the model said about held-out samples. One JSON object
// a line:
//
//   {"stage": 3, "category": "text_rich", "prompt": "What does it say?", "truth": "Orchard",
//    "prediction": "Orchord", "pictures": ["<PNG in base64>", ...]}
//
// stage is that of the checkpoint that was asked. Text is UTF-8.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace orchard {

struct Prediction {
  int stage = 0;
  std::string category, prompt, truth, prediction;
  std::vector<std::vector<std::uint8_t>> pictures;  // PNG files

  // White space at either end apart.
  bool is_right() const;
};

// Replaces the file as a whole.
void write_predictions(const std::filesystem::path& run_folder,
                       std::span<const Prediction> predictions);

// Empty where there is no file. Throws Error naming the line that cannot be read.
std::vector<Prediction> read_predictions(const std::filesystem::path& run_folder);

}  // namespace orchard
