// Micro-batches made up on the spot, of any shape: for tests of what a layout may not change.
#pragma once

#include <algorithm>
#include <span>

#include "data/batch.h"
#include "data/sample.h"
#include "models/config.h"
#include "parallel/random.h"

namespace orchard::testing {

struct ToyShape {
  std::int64_t sequences = 1, length = 8;
  std::int64_t tiles = 0;    // of the first sequence, which must have room
  std::int64_t padding = 0;  // rows at the end of the last sequence
};

// Random tokens in documents of 1 to 6 rows behind those of the tiles; every text row whose
// successor is a text row of the same document has it as its target, the last row of all any token.
inline MicroBatch toy_micro_batch(const ModelConfig& model, const ToyShape& shape,
                                  const std::string& name) {
  const CounterRandom random(17, name);
  std::uint64_t counter = 0;
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random.uniform(counter++) * static_cast<double>(n));
  };
  const std::int64_t visual = shape.tiles * model.connector.tokens();
  MicroBatch batch{.sequences = shape.sequences, .length = shape.length};
  batch.document_offsets = {0};
  for (std::int64_t s = 0; s < shape.sequences; ++s) {
    const std::int64_t real = shape.length - (s == shape.sequences - 1 ? shape.padding : 0);
    batch.real_rows.push_back(static_cast<std::int32_t>(real));
    for (std::int64_t row = 0, end = 0, begin = 0; row < shape.length; ++row) {
      if (row == end) {
        begin = row;
        end = row >= real                        ? shape.length
              : row == 0 && s == 0 && visual > 0 ? std::min(visual + 2, real)
                                                 : std::min(row + 1 + below(6), real);
        batch.document_offsets.push_back(static_cast<std::int32_t>(s * shape.length + end));
      }
      const bool is_visual = s == 0 && row < visual;
      const auto text = static_cast<std::int32_t>(4 + below(model.decoder.vocabulary - 4));
      batch.sources.push_back(row >= real ? token_pad
                              : is_visual ? static_cast<std::int32_t>(-1 - row)
                                          : text);
      batch.positions.push_back(row >= real ? 0 : static_cast<std::int32_t>(row - begin));
      batch.targets.push_back(-1);
      if (row > begin && row < real && !is_visual)
        batch.targets[batch.targets.size() - 2] = batch.sources.back();
    }
  }
  if (shape.padding == 0) batch.targets.back() = 5;
  batch.category.assign(batch.sources.size(), 0);
  batch.sample.assign(batch.sources.size(), 0);
  batch.target_count =
      std::ranges::count_if(batch.targets, [](std::int32_t target) { return target >= 0; });
  batch.tiles = shape.tiles;
  const std::int64_t pixels = shape.tiles * model.vision.patches() * model.vision.patch_values();
  for (std::int64_t i = 0; i < pixels; ++i)
    batch.patches.push_back(static_cast<float>(random.normal(counter++)));
  return batch;
}

// Pictures next to text alone, padding, rows that nothing divides, a single token.
inline constexpr ToyShape mixed_shapes[] = {
    {.sequences = 2, .length = 13, .tiles = 1, .padding = 3},
    {.sequences = 1, .length = 1},
    {.sequences = 1, .length = 11, .tiles = 2},
    {.sequences = 2, .length = 7},
    {.sequences = 1, .length = 16, .padding = 15},
    {.sequences = 1, .length = 6, .tiles = 1},
    {.sequences = 1, .length = 3},
    {.sequences = 3, .length = 5, .padding = 1},
};

// The same, of one size, as those of a packing plan are.
inline constexpr ToyShape alike_shapes[] = {
    {.sequences = 2, .length = 13, .tiles = 1, .padding = 3},
    {.sequences = 2, .length = 13, .padding = 12},
    {.sequences = 2, .length = 13, .tiles = 2},
    {.sequences = 2, .length = 13},
    {.sequences = 2, .length = 13, .padding = 7},
    {.sequences = 2, .length = 13, .tiles = 1},
    {.sequences = 2, .length = 13, .padding = 1},
    {.sequences = 2, .length = 13, .padding = 5},
};

// Four steps of micro-batches of some shapes. Everything comes twice: losses are compared where a
// learner makes them move.
inline std::vector<std::vector<MicroBatch>> steps_of(const ModelConfig& model,
                                                     std::span<const ToyShape> shapes) {
  std::vector<std::vector<MicroBatch>> steps(4);
  for (std::size_t step = 0; step < steps.size(); ++step) {
    for (const ToyShape& shape : shapes)
      steps[step].push_back(
          toy_micro_batch(model, shape, fmt::format("{}.{}", step % 2, steps[step].size())));
  }
  return steps;
}

// With a capacity they are alike: then messages between the ranks of experts have a fixed size.
inline std::vector<std::vector<MicroBatch>> mixed_steps(const ModelConfig& model) {
  return model.decoder.moe.capacity_factor > 0 ? steps_of(model, alike_shapes)
                                               : steps_of(model, mixed_shapes);
}

}  // namespace orchard::testing
