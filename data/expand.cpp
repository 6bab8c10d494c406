#include "data/expand.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {
namespace {

// Collects rows; a target is a property of the row that is predicted, one below.
class RowWriter {
 public:
  explicit RowWriter(std::size_t rows) { rows_.sources.reserve(rows), is_target_.reserve(rows); }

  void add(std::int32_t source, bool is_target) {
    rows_.sources.push_back(source);
    is_target_.push_back(is_target);
  }

  SampleRows finish() && {
    const std::size_t rows = rows_.sources.size();
    rows_.targets.assign(rows, -1);
    for (std::size_t r = 0; r + 1 < rows; ++r) {
      if (!is_target_[r + 1]) continue;
      rows_.targets[r] = rows_.sources[r + 1];
      ++rows_.target_count;
    }
    return std::move(rows_);
  }

 private:
  SampleRows rows_;
  std::vector<bool> is_target_;
};

void check_tokens(const Sample& sample, const SampleRecord& record, std::int32_t vocabulary) {
  const auto images = std::count(sample.tokens.begin(), sample.tokens.end(), token_image);
  require(static_cast<std::int64_t>(sample.tokens.size()) == record.token_count &&
              sample.roles.size() == sample.tokens.size() && images == record.picture_count,
          "{} tokens, {} roles and {} image tokens, where the index says {} tokens and {} pictures",
          sample.tokens.size(), sample.roles.size(), images, record.token_count,
          record.picture_count);
  require(sample.tokens.front() != token_image, "opens with a picture instead of a text token");
  for (const std::int32_t token : sample.tokens) {
    require(token >= 0 && token < vocabulary, "token {} lies outside the vocabulary of {}", token,
            vocabulary);
  }
}

}  // namespace

SampleRows expand_sample(const Sample& sample, std::int64_t number, std::int64_t pictures_of,
                         std::int64_t first_visual_row, const SampleLayout& layout) {
  check_tokens(sample, layout.record(number), layout.index().vocabulary);
  const SampleExtent& extent = layout.extent(number);
  const std::vector<TilePlan> plans = layout.tile_plans(pictures_of);
  const std::int64_t tokens_per_tile = layout.options().tokens_per_tile;
  std::int64_t text_left = extent.rows - extent.tiles * tokens_per_tile;
  for (std::size_t p = 0; p < plans.size(); ++p) {
    text_left -= layout.marks().tokens_of(static_cast<int>(p), plans[p]);
  }

  RowWriter rows(static_cast<std::size_t>(extent.rows));
  std::size_t picture = 0;
  std::int64_t visual_row = first_visual_row;
  const auto add_picture = [&] {
    const TilePlan& plan = plans[picture];
    for (int tile = 0; tile < plan.tiles(); ++tile) {
      for (const std::int32_t mark : layout.marks().before(static_cast<int>(picture), plan, tile)) {
        rows.add(mark, false);
      }
      for (std::int64_t i = 0; i < tokens_per_tile; ++i) {
        rows.add(static_cast<std::int32_t>(-1 - visual_row++), false);
      }
    }
    ++picture;
  };
  for (std::size_t i = 0; i < sample.tokens.size(); ++i) {
    if (sample.tokens[i] == token_image) {
      add_picture();
    } else if (text_left-- > 0) {
      rows.add(sample.tokens[i], layout.options().targets == TargetPolicy::text ||
                                     sample.roles[i] == Role::assistant);
    }
  }
  SampleRows result = std::move(rows).finish();
  require(static_cast<std::int64_t>(result.sources.size()) == extent.rows &&
              result.target_count == extent.targets,
          "{} rows and {} targets, where {} and {} were planned from the index",
          result.sources.size(), result.target_count, extent.rows, extent.targets);
  return result;
}

}  // namespace orchard
