// A checkpoint against the held-out samples: losses, exact matches, and answers to look at.
#pragma once

#include <string>
#include <vector>

#include "train/inference.h"
#include "train/validation.h"

namespace orchard {

struct EvaluateOptions {
  std::int64_t generated_per_category =
      32;                            // samples that are answered; losses cover all held-out ones
  std::int64_t longest_answer = 64;  // tokens
  ProgressHook validating, answering;
};

// One held-out sample answered by greedy decoding: what precedes its first target is the prompt,
// the targets up to the closing token are the truth.
struct AnsweredSample {
  std::string category;
  std::string sample;  // its id
  std::string prompt;  // text of the prompt, pictures as <image>
  std::string truth;
  std::string answer;
  std::vector<EncodedPicture> pictures;
  bool exact() const { return answer == truth; }
};

struct CategoryAccuracy {
  std::string category;
  std::int64_t samples = 0;
  std::int64_t exact = 0;
};

struct EvaluationReport {
  ValidationReport validation;
  std::vector<CategoryAccuracy> accuracy;  // of categories whose samples have pictures or answers
  std::vector<AnsweredSample> answers;
};

// Sequences are dealt out to the model's data ranks; every rank answers all samples, with the same
// report.
EvaluationReport evaluate(InferenceModel& model, const TrainingSet& set, const StageData& data,
                          const EvaluateOptions& options);

}  // namespace orchard
