// What each sample occupies in a packed sequence: a function of the index and the options of a
// stage, so every rank knows it without reading a sample.
//
// A sample becomes one document: its text tokens, and in place of each picture, per tile, the
// tokens of the tile's mark and tokens_per_tile visual rows. A document longer than a sequence
// loses text tokens from its end until it fits; its pictures are never cut or dropped.
#pragma once

#include <limits>
#include <vector>

#include "data/index.h"
#include "data/marks.h"
#include "data/tiling.h"

namespace orchard {

enum class TargetPolicy : std::uint8_t {
  text,       // every text token but the first of its document; marks are input
  assistant,  // tokens with Role::assistant: answers and the mark that ends each
};

struct PackingOptions {
  std::int64_t length = 4096;  // rows of a sequence
  std::int64_t tokens_per_tile = 144;
  std::int64_t max_pictures = std::numeric_limits<std::int64_t>::max();  // in a sequence
  TilingOptions tiling{};
  TargetPolicy targets = TargetPolicy::text;
};

enum class Packability : std::uint8_t {
  whole,
  truncated,           // text cut at the end
  pictures_too_large,  // skipped: its pictures alone fill a sequence, or are too many for one
  answer_too_long,  // skipped: cutting the text would cut answers, and which the index cannot tell
  empty,            // skipped: no token
};

struct SampleExtent {
  std::int32_t rows = 0;
  std::int32_t targets = 0;  // rows with a target
  std::int32_t tiles = 0;
  std::int32_t pictures = 0;
  Packability packability = Packability::empty;

  bool packable() const {
    return packability == Packability::whole || packability == Packability::truncated;
  }
};

struct PackabilityCounts {
  std::int64_t whole = 0;
  std::int64_t truncated = 0;
  std::int64_t pictures_too_large = 0;
  std::int64_t answer_too_long = 0;
  std::int64_t empty = 0;
};

// Immutable once made; may be read by several threads. The index must outlive it.
class SampleLayout {
 public:
  SampleLayout(const TrainingSetIndex& index, const PackingOptions& options, MarkTable marks);

  const TrainingSetIndex& index() const { return index_; }
  const PackingOptions& options() const { return options_; }
  const MarkTable& marks() const { return marks_; }

  const SampleRecord& record(std::int64_t sample) const {
    return index_.samples[static_cast<std::size_t>(sample)];
  }
  const SampleExtent& extent(std::int64_t sample) const {
    return extents_[static_cast<std::size_t>(sample)];
  }
  // One plan per picture of the sample, in order.
  std::vector<TilePlan> tile_plans(std::int64_t sample) const;

  // Samples of the split that can be packed, ascending.
  std::vector<std::int64_t> packable(Split) const;
  PackabilityCounts count(Split) const;

 private:
  SampleExtent measure(const SampleRecord&) const;
  TilePlan tile_plan(const SampleRecord&, int picture) const;

  const TrainingSetIndex& index_;
  PackingOptions options_;
  MarkTable marks_;
  std::vector<SampleExtent> extents_;
};

// The mark table that fits the options and the index.
MarkTable make_mark_table(MarkStyle, const TextTokenizer&, const TilingOptions&,
                          const TrainingSetIndex&);

}  // namespace orchard
