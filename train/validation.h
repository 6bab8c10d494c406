// How well the model predicts held-out samples, and whether it looks at the pictures.
#pragma once

#include <string>
#include <vector>

#include "train/progress.h"
#include "train/stage_data.h"
#include "train/step.h"

namespace orchard {

// The same held-out samples with their own pictures and with each other's. A model that looks loses
// when pictures are swapped. Differences are taken per sample, so they are paired.
struct SwapReport {
  std::int64_t samples = 0;
  double own = 0;  // mean over samples of the sample's mean target loss
  double swapped = 0;
  double difference = 0;      // mean of swapped - own
  double standard_error = 0;  // of that mean

  double z() const { return standard_error > 0 ? difference / standard_error : 0; }
};

struct CategoryLoss {
  std::string category;
  double loss = 0;  // mean over the category's target tokens
  std::int64_t targets = 0;
  SwapReport swap{};  // samples < 2 when it was not asked for or too few pair
};

struct ValidationReport {
  double loss = 0;  // mean over all target tokens
  std::int64_t targets = 0;
  std::vector<CategoryLoss> categories;  // those with targets, in the training set's order
  SwapReport swap;                       // of all categories together
};

enum class Swap : std::uint8_t { skip, compare };

// Sequences are dealt out to the ranks; every rank returns the same report. `on_bad` hears of this
// rank's bad samples, `progress` of micro-batches, first with their own pictures and then with others'.
ValidationReport validate(StepRunner& runner, const StageData& data, const TrainingSetIndex& index,
                          Communicator& ranks, Swap swap,
                          std::function<void(const BadSample&)> on_bad,
                          const ProgressHook& progress = {});

}  // namespace orchard
