// Position marks: the text that tells the decoder which tile of which picture follows.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tiling.h"

namespace orchard {

enum class MarkStyle : std::uint8_t {
  none,
  separators,  // "," between columns, a newline between rows, ":" before the overview
  index,  // "(k,i,j)" before every tile: picture from 0, row and column from 1; overview (k,0,0)
};

// What stands before tile `tile` (in the order of TilePlan) of picture `picture` of a sample.
std::string mark_text(MarkStyle, int picture, const TilePlan&, int tile);

// Text to token ids, without opening or closing tokens.
using TextTokenizer = std::function<std::vector<std::int32_t>(std::string_view)>;

// Every mark a training set can need, tokenized once: planning knows the length of each mark, and
// the table is read by several threads. Immutable.
class MarkTable {
 public:
  // No marks.
  MarkTable() = default;
  // For samples of at most `max_pictures` pictures under `tiling`.
  MarkTable(MarkStyle style, const TextTokenizer& tokenize, const TilingOptions& tiling,
            int max_pictures);

  // Tokens before that tile; valid while the table lives.
  std::span<const std::int32_t> before(int picture, const TilePlan&, int tile) const;
  // Tokens of all marks of that picture.
  std::int64_t tokens_of(int picture, const TilePlan&) const;

 private:
  std::size_t slot(int picture, const TilePlan&, int tile) const;

  MarkStyle style_ = MarkStyle::none;
  int pictures_ = 0;
  int longest_side_ = 0;  // the most rows or columns a grid may have
  std::vector<std::vector<std::int32_t>> tokens_;
};

}  // namespace orchard
