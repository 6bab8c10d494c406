#include "train/stage_model.h"

namespace orchard {

ModelConfig stage_model(const RunConfig& run, const StageConfig& stage, const TrainingSet& set) {
  ModelConfig model = run.model;
  model.vision.side = stage.side;
  const std::int64_t vocabulary = set.tokenizer().vocabulary();
  if (model.decoder.vocabulary == 0) model.decoder.vocabulary = vocabulary;
  require(model.decoder.vocabulary >= vocabulary,
          "the tokenizer of {} has {} pieces, the model's vocabulary (decoder.vocabulary) only {}",
          run.training_set.string(), vocabulary, model.decoder.vocabulary);
  if (model.decoder.max_positions == 0) model.decoder.max_positions = stage.sequence_length;
  require(model.decoder.max_positions >= stage.sequence_length,
          "stage {}: sequences of {} rows do not fit decoder.max_positions = {}", stage.number,
          stage.sequence_length, model.decoder.max_positions);
  return model;
}

}  // namespace orchard
