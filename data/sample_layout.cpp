#include "data/sample_layout.h"

#include <algorithm>
#include <utility>

#include "kernels/core/error.h"

namespace orchard {

SampleLayout::SampleLayout(const TrainingSetIndex& index, const PackingOptions& options,
                           MarkTable marks)
    : index_(index), options_(options), marks_(std::move(marks)) {
  require(options.length >= 2 && options.length <= std::numeric_limits<std::int32_t>::max(),
          "sequence length {} must be at least 2 rows: one to predict from and one to predict",
          options.length);
  require(options.tokens_per_tile >= 1, "tokens per tile {} must be positive",
          options.tokens_per_tile);
  extents_.reserve(index.samples.size());
  for (const SampleRecord& record : index.samples) extents_.push_back(measure(record));
}

TilePlan SampleLayout::tile_plan(const SampleRecord& record, int picture) const {
  const PictureSize size =
      index_.pictures[static_cast<std::size_t>(record.first_picture + picture)];
  return plan_tiles(size, options_.tiling, record.picture_count);
}

std::vector<TilePlan> SampleLayout::tile_plans(std::int64_t sample) const {
  const SampleRecord& of = record(sample);
  std::vector<TilePlan> plans;
  plans.reserve(static_cast<std::size_t>(of.picture_count));
  for (int p = 0; p < of.picture_count; ++p) plans.push_back(tile_plan(of, p));
  return plans;
}

SampleExtent SampleLayout::measure(const SampleRecord& record) const {
  const std::int64_t text = record.token_count - record.picture_count;
  if (text < 1) return {.packability = Packability::empty};
  std::int64_t tiles = 0, picture_rows = 0;
  for (int p = 0; p < record.picture_count; ++p) {
    const TilePlan plan = tile_plan(record, p);
    tiles += plan.tiles();
    picture_rows += plan.tiles() * options_.tokens_per_tile + marks_.tokens_of(p, plan);
  }
  // At least the token that opens the document and one to predict stay beside the pictures.
  if (record.picture_count > options_.max_pictures ||
      picture_rows + std::min<std::int64_t>(text, 2) > options_.length) {
    return {.packability = Packability::pictures_too_large};
  }
  const std::int64_t kept = std::min(text, options_.length - picture_rows);
  if (kept < text && options_.targets == TargetPolicy::assistant) {
    return {.packability = Packability::answer_too_long};
  }
  const std::int64_t targets =
      options_.targets == TargetPolicy::text ? kept - 1 : record.assistant_tokens;
  return {.rows = static_cast<std::int32_t>(picture_rows + kept),
          .targets = static_cast<std::int32_t>(targets),
          .tiles = static_cast<std::int32_t>(tiles),
          .pictures = record.picture_count,
          .packability = kept < text ? Packability::truncated : Packability::whole};
}

std::vector<std::int64_t> SampleLayout::packable(Split split) const {
  std::vector<std::int64_t> samples;
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    if (index_.samples[i].split == split && extents_[i].packable()) {
      samples.push_back(static_cast<std::int64_t>(i));
    }
  }
  return samples;
}

PackabilityCounts SampleLayout::count(Split split) const {
  PackabilityCounts counts;
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    if (index_.samples[i].split != split) continue;
    switch (extents_[i].packability) {
      case Packability::whole:
        ++counts.whole;
        break;
      case Packability::truncated:
        ++counts.truncated;
        break;
      case Packability::pictures_too_large:
        ++counts.pictures_too_large;
        break;
      case Packability::answer_too_long:
        ++counts.answer_too_long;
        break;
      case Packability::empty:
        ++counts.empty;
        break;
    }
  }
  return counts;
}

MarkTable make_mark_table(MarkStyle style, const TextTokenizer& tokenize,
                          const TilingOptions& tiling, const TrainingSetIndex& index) {
  std::int32_t most = 0;
  for (const SampleRecord& record : index.samples) most = std::max(most, record.picture_count);
  return {style, tokenize, tiling, most};
}

}  // namespace orchard
