#include "train/score.h"

#include "data/atomic_file.h"
#include "data/render.h"

namespace orchard {
namespace {

void add_pictures(const ModelConfig& config, Device& device, const TilingOptions& tiling,
                  const ScoreRequest& request, MicroBatch& batch) {
  PictureRenderer renderer(device, config.vision.side, config.vision.patch);
  const auto count = static_cast<int>(request.pictures.size());
  for (const std::filesystem::path& path : request.pictures) {
    const Picture picture = [&] {
      try {
        return decode_picture(read_file(path));
      } catch (const Error& error) {
        fail("{}: {}", path.string(), error.what());
      }
    }();
    const TilePlan plan = plan_tiles({picture.width, picture.height}, tiling, count);
    const std::size_t before = batch.patches.size();
    batch.patches.resize(before + static_cast<std::size_t>(plan.tiles() * renderer.tile_values()));
    renderer.render(picture, plan, batch.patches.data() + before);
    batch.tiles += plan.tiles();
  }
}

}  // namespace

std::vector<std::optional<double>> score(InferenceModel& model, Device& device,
                                         const TilingOptions& tiling, const ScoreRequest& request) {
  const ModelConfig& config = model.config();
  const auto rows = static_cast<std::int64_t>(request.tokens.size());
  require(rows >= 1, "a request needs at least one token");
  MicroBatch batch{.sequences = 1, .length = rows};
  add_pictures(config, device, tiling, request, batch);

  std::int32_t visual_rows = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int32_t token = request.tokens[static_cast<std::size_t>(i)];
    require(token >= 0 && token < config.decoder.vocabulary,
            "token {} at position {} lies outside the vocabulary of {}", token, i,
            config.decoder.vocabulary);
    batch.sources.push_back(token == token_image ? -1 - visual_rows++ : token);
    batch.positions.push_back(static_cast<std::int32_t>(i));
    const bool predicts =
        i + 1 < rows && request.tokens[static_cast<std::size_t>(i + 1)] != token_image;
    batch.targets.push_back(predicts ? request.tokens[static_cast<std::size_t>(i + 1)] : -1);
  }
  require(visual_rows == batch.tiles * config.connector.tokens(),
          "the request has {} visual tokens (id {}), its {} pictures make {} tiles of {} each",
          visual_rows, static_cast<int>(token_image), request.pictures.size(), batch.tiles,
          config.connector.tokens());
  batch.document_offsets = {0, static_cast<std::int32_t>(rows)};
  batch.real_rows = {static_cast<std::int32_t>(rows)};

  const std::vector<float> losses = model.runner().evaluate(batch);
  std::vector<std::optional<double>> logprobs(request.tokens.size());
  std::size_t next = 0;
  for (std::size_t i = 0; i + 1 < logprobs.size(); ++i) {
    if (batch.targets[i] >= 0) logprobs[i + 1] = -static_cast<double>(losses[next++]);
  }
  return logprobs;
}

}  // namespace orchard
