// Prompts: what a model is given before it goes on by itself.
#pragma once

#include "data/batch.h"
#include "data/draft.h"
#include "train/run_config.h"

namespace orchard {

// Rows [0, rows) of the first document of a batch as a batch of their own, without targets. All
// pictures of the batch must belong to them.
MicroBatch leading_rows(const MicroBatch& batch, std::int64_t rows);

// A document laid out as the stage lays out samples (tiles, marks), open at its end. Renders on
// `device`, a CPU's. Throws Error when a picture cannot be read or the document is longer than the
// stage's sequences.
MicroBatch prompt_batch(Draft draft, const Tokenizer& tokenizer, const RunConfig& run,
                        const StageConfig& stage, Device& device);

}  // namespace orchard
