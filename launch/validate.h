// Whether the options of a run fit each other. That each is what its option allows has been checked
// before, when it was read.
#pragma once

#include "launch/options.h"

namespace orchard {

// Throws ConfigurationError: section.key, its value, where it came from, and the rule it breaks.
// `run` says where values came from, `config` is run.config().
void validate(const ResolvedRun& run, const RunConfig& config);

// What only the start knows: the layout must be possible for so many ranks, and every step's
// sequences must fall evenly on its replicas of the model.
void validate_ranks(const ResolvedRun& run, int ranks);

// The tokenizer's tokens must have a place in the model's vocabulary, where the options give one;
// else they are the vocabulary, and the layout must be able to cut it.
void validate_vocabulary(const ResolvedRun& run, std::int64_t tokenizer_vocabulary, int ranks);

// A training set with pictures needs a vision tower.
void validate_pictures(const ResolvedRun& run, std::size_t pictures);

}  // namespace orchard
