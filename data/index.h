// The index of a training set: one record per sample, in a fixed order. Small enough for every rank
// to hold.
#pragma once

#include <string>
#include <vector>

#include "data/sample.h"

namespace orchard {

struct TrainingSetIndex {
  std::vector<std::string> categories;
  std::vector<SampleRecord> samples;
  std::vector<PictureSize> pictures;  // of all samples, in sample order
  std::int32_t vocabulary = 0;
};

}  // namespace orchard
