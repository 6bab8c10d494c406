// Log-probabilities of given token sequences: how others check this model against theirs.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "data/tiling.h"
#include "train/inference.h"

namespace orchard {

struct ScoreRequest {
  // Expanded: token_image (4) stands once for each visual token, picture by picture, tile by tile.
  std::vector<std::int32_t> tokens;
  std::vector<std::filesystem::path> pictures;  // JPEG or PNG, in order
};

// Entry i: ln p(tokens[i] | tokens before it, pictures before it); none for the first token and for
// visual tokens. The request is one document. Throws Error when the visual tokens do not match the
// pictures under `tiling`, a token lies outside the vocabulary, or a picture cannot be read.
std::vector<std::optional<double>> score(InferenceModel& model, Device& device,
                                         const TilingOptions& tiling, const ScoreRequest& request);

}  // namespace orchard
