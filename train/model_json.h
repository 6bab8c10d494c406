// A model's dimensions as JSON text: checkpoints carry it, so that they can be used without their
// recipe.
#pragma once

#include <string>

#include "models/config.h"

namespace orchard {

std::string model_json(const ModelConfig& model);
// Throws Error naming the field that is missing or of the wrong type.
ModelConfig model_from_json(const std::string& text);

}  // namespace orchard
