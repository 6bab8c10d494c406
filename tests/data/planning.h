// What the tests of planning share: training sets made of lengths and picture sizes alone.
#pragma once

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "data/sample_layout.h"

namespace orchard::testing {

struct SampleShape {
  std::int32_t category = 0;
  std::int32_t text_tokens = 2;
  std::vector<PictureSize> pictures{};
  std::int32_t assistant_tokens = 0;
  Split split = Split::train;
};

inline TrainingSetIndex make_index(std::vector<std::string> categories,
                                   const std::vector<SampleShape>& shapes) {
  TrainingSetIndex index;
  index.categories = std::move(categories);
  index.vocabulary = 512;
  for (const SampleShape& shape : shapes) {
    const auto pictures = static_cast<std::int32_t>(shape.pictures.size());
    index.samples.push_back({.category = shape.category,
                             .split = shape.split,
                             .token_count = shape.text_tokens + pictures,
                             .assistant_tokens = shape.assistant_tokens,
                             .first_picture = static_cast<std::int64_t>(index.pictures.size()),
                             .picture_count = pictures});
    index.pictures.insert(index.pictures.end(), shape.pictures.begin(), shape.pictures.end());
  }
  return index;
}

// One token a character.
inline std::vector<std::int32_t> characters(std::string_view text) {
  return {text.begin(), text.end()};
}

// Random lengths and sizes in the categories caption (one or more pictures), interleaved and text.
inline TrainingSetIndex random_index(unsigned seed, int samples, std::int32_t longest_text) {
  std::mt19937 engine(seed);
  const auto below = [&](std::int32_t n) {
    return static_cast<std::int32_t>(engine() % static_cast<unsigned>(n));
  };
  std::vector<SampleShape> shapes;
  for (int i = 0; i < samples; ++i) {
    SampleShape shape{.category = below(3), .text_tokens = 1 + below(longest_text)};
    const int pictures = shape.category == 2 ? 0 : shape.category == 0 ? 1 : below(5);
    for (int p = 0; p < pictures; ++p) shape.pictures.push_back({1 + below(900), 1 + below(900)});
    if (below(5) == 0) shape.split = Split::held_out;
    shapes.push_back(std::move(shape));
  }
  return make_index({"caption", "interleaved", "text"}, shapes);
}

}  // namespace orchard::testing
