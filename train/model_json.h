// A model's dimensions as JSON text: checkpoints carry it, so that they can be used without their
// recipe.
#pragma once

#include <string>

#include "models/config.h"

namespace orchard {

std::string model_json(const ModelConfig& model);
// Throws Error naming the field that is missing or of the wrong type.
ModelConfig model_from_json(const std::string& text);

// "decoder.layers = 4, not 5; ...": what a recipe and a checkpoint of its runs must have in common
// and do not; empty when they are of one model. The side and max_positions follow the stage, a
// vocabulary of 0 the tokenizer.
std::string model_difference(const ModelConfig& stored, const ModelConfig& recipe);

}  // namespace orchard
