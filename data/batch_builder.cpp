#include "data/batch_builder.h"

#include <algorithm>
#include <utility>

#include "data/shard.h"

namespace orchard {
namespace {

// Rows for a sample of which nothing could be read: its pictures first, then unknown tokens.
SampleRows placeholder_rows(const PackedSample& packed, std::int64_t first_visual_row,
                            std::int64_t tokens_per_tile) {
  SampleRows rows;
  const auto count = static_cast<std::size_t>(packed.rows);
  rows.sources.assign(count, token_unknown);
  rows.targets.assign(count, -1);
  for (std::int64_t v = 0; v < packed.tiles * tokens_per_tile; ++v) {
    rows.sources[static_cast<std::size_t>(v)] =
        static_cast<std::int32_t>(-1 - first_visual_row - v);
  }
  return rows;
}

}  // namespace

BatchBuilder::BatchBuilder(const SampleLayout& layout, SampleSource source,
                           BatchBuilderOptions options, Device& device)
    : layout_(layout),
      source_(std::move(source)),
      options_(std::move(options)),
      renderer_(device, layout.options().tiling.side, options_.patch) {}

MicroBatch BatchBuilder::build(std::span<const PackedSequence> sequences) {
  MicroBatch batch;
  batch.sequences = static_cast<std::int64_t>(sequences.size());
  batch.length = layout_.options().length;
  const auto rows = static_cast<std::size_t>(batch.sequences * batch.length);
  batch.sources.reserve(rows);
  batch.targets.reserve(rows);
  batch.positions.reserve(rows);
  batch.category.reserve(rows);
  batch.sample.reserve(rows);
  batch.document_offsets.push_back(0);
  std::int64_t tiles = 0;
  for (const PackedSequence& sequence : sequences) tiles += sequence.tiles;
  // Zeros are the mean colour.
  if (options_.pictures == PictureContent::whole)
    batch.patches.assign(static_cast<std::size_t>(tiles * renderer_.tile_values()), 0.0f);
  for (const PackedSequence& sequence : sequences) {
    for (const PackedSample& packed : sequence.samples) add_sample(packed, batch);
    add_padding(batch.length - sequence.rows, batch);
    batch.real_rows.push_back(sequence.rows);
  }
  return batch;
}

void BatchBuilder::add_sample(const PackedSample& packed, MicroBatch& batch) {
  const SampleRows rows = read_sample(packed, batch);
  batch.sources.insert(batch.sources.end(), rows.sources.begin(), rows.sources.end());
  batch.targets.insert(batch.targets.end(), rows.targets.begin(), rows.targets.end());
  for (std::int32_t r = 0; r < packed.rows; ++r) batch.positions.push_back(r);
  const auto count = static_cast<std::size_t>(packed.rows);
  batch.category.insert(batch.category.end(), count, layout_.record(packed.sample).category);
  batch.sample.insert(batch.sample.end(), count, packed.sample);
  batch.document_offsets.push_back(static_cast<std::int32_t>(batch.sources.size()));
  batch.tiles += packed.tiles;
  batch.target_count += rows.target_count;
}

void BatchBuilder::add_padding(std::int64_t rows, MicroBatch& batch) {
  if (rows == 0) return;
  const auto count = static_cast<std::size_t>(rows);
  batch.sources.insert(batch.sources.end(), count, token_pad);
  batch.targets.insert(batch.targets.end(), count, -1);
  batch.positions.insert(batch.positions.end(), count, 0);
  batch.category.insert(batch.category.end(), count, -1);
  batch.sample.insert(batch.sample.end(), count, -1);
  batch.document_offsets.push_back(static_cast<std::int32_t>(batch.sources.size()));
}

std::span<float> BatchBuilder::patches_of(const PackedSample& packed, MicroBatch& batch) const {
  if (batch.patches.empty()) return {};
  return std::span(batch.patches)
      .subspan(static_cast<std::size_t>(batch.tiles * renderer_.tile_values()),
               static_cast<std::size_t>(packed.tiles * renderer_.tile_values()));
}

SampleRows BatchBuilder::read_sample(const PackedSample& packed, MicroBatch& batch) {
  const std::int64_t tokens_per_tile = layout_.options().tokens_per_tile;
  const std::int64_t first_visual_row = batch.tiles * tokens_per_tile;
  const std::span<float> patches = patches_of(packed, batch);
  BadSample bad{.sample = packed.sample};
  SampleRows rows;
  try {
    const Sample sample = source_.read(packed.sample);
    bad.id = sample.id;
    rows = expand_sample(sample, packed.sample, packed.pictures_of, first_visual_row, layout_);
    if (options_.pictures == PictureContent::absent) {
      // Whoever renders tells of pictures that are bad.
    } else if (packed.pictures_of == packed.sample) {
      render(sample, packed.pictures_of, patches.data());
    } else {
      render(source_.read(packed.pictures_of), packed.pictures_of, patches.data());
    }
    bad_in_a_row_ = 0;
    return rows;
  } catch (const DamagedFile&) {
    throw;
  } catch (const Error& error) {
    bad.reason = error.what();
  }
  std::ranges::fill(patches, 0.0f);
  if (rows.sources.empty()) rows = placeholder_rows(packed, first_visual_row, tokens_per_tile);
  std::fill(rows.targets.begin(), rows.targets.end(), -1);
  rows.target_count = 0;
  batch.bad_documents.push_back(static_cast<std::int32_t>(batch.document_offsets.size()) - 1);
  note_bad(bad);
  return rows;
}

void BatchBuilder::note_bad(const BadSample& bad) {
  ++bad_samples_;
  ++bad_in_a_row_;
  if (options_.on_bad) options_.on_bad(bad);
  require(bad_in_a_row_ < options_.bad_in_a_row_limit,
          "{} samples in a row were bad, the last of them sample {} ({}): {}; inspect the training "
          "set's shards and pack it again",
          bad_in_a_row_, bad.sample, bad.id, bad.reason);
}

void BatchBuilder::render(const Sample& pictures, std::int64_t number, float* patches) {
  const std::vector<TilePlan> plans = layout_.tile_plans(number);
  require(pictures.pictures.size() == plans.size(), "{} pictures, where the index says {}",
          pictures.pictures.size(), plans.size());
  for (std::size_t p = 0; p < plans.size(); ++p) {
    const TilePlan& plan = plans[p];
    const Picture picture = source_.decode(pictures.pictures[p]);
    const PictureSize& size =
        layout_.index()
            .pictures[static_cast<std::size_t>(layout_.record(number).first_picture) + p];
    require(picture.width == size.width && picture.height == size.height &&
                picture.rgb.size() == static_cast<std::size_t>(size.width) *
                                          static_cast<std::size_t>(size.height) * 3,
            "picture {} decodes to {} x {} pixels, where the index says {} x {}", p, picture.width,
            picture.height, size.width, size.height);
    renderer_.render(picture, plan, patches);
    patches += plan.tiles() * renderer_.tile_values();
  }
}

}  // namespace orchard
