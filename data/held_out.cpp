#include "data/held_out.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "kernels/core/error.h"

namespace orchard {
namespace {

std::vector<std::int64_t> choose_samples(const SampleLayout& layout,
                                         const HeldOutOptions& options) {
  std::vector<std::vector<std::int64_t>> of_category(layout.index().categories.size());
  const std::vector<std::int32_t>& wanted = options.categories;
  for (const std::int64_t sample : layout.packable(Split::held_out)) {
    const std::int32_t category = layout.record(sample).category;
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), category) == wanted.end()) {
      continue;
    }
    of_category[static_cast<std::size_t>(category)].push_back(sample);
  }
  std::vector<std::int64_t> chosen;
  for (const std::vector<std::int64_t>& samples : of_category) {
    const auto size = static_cast<std::int64_t>(samples.size());
    const std::int64_t take = std::min(size, options.limit_per_category);
    for (std::int64_t i = 0; i < take; ++i) {
      chosen.push_back(samples[static_cast<std::size_t>(i * size / take)]);
    }
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// Category, then rows and columns of each picture's grid: what must agree to swap pictures.
std::vector<int> swap_key(const SampleLayout& layout, std::int64_t sample) {
  std::vector<int> key{layout.record(sample).category};
  for (const TilePlan& plan : layout.tile_plans(sample)) {
    key.push_back(plan.grid.rows);
    key.push_back(plan.grid.cols);
  }
  return key;
}

}  // namespace

std::vector<PackedSequence> HeldOutPlan::swapped() const {
  std::unordered_map<std::int64_t, std::int64_t> partner;
  for (const PicturePair& pair : pairs) partner[pair.sample] = pair.pictures_of;
  std::vector<PackedSequence> result = sequences;
  for (PackedSequence& sequence : result) {
    for (PackedSample& packed : sequence.samples) {
      const auto found = partner.find(packed.sample);
      if (found != partner.end()) packed.pictures_of = found->second;
    }
  }
  return result;
}

HeldOutPlan plan_held_out(const SampleLayout& layout, const HeldOutOptions& options) {
  require(options.limit_per_category >= 1,
          "a held-out limit of {} samples per category leaves none", options.limit_per_category);
  HeldOutPlan plan;
  const PackabilityCounts counts = layout.count(Split::held_out);
  plan.skipped = counts.pictures_too_large + counts.answer_too_long + counts.empty;

  std::map<std::vector<int>, std::vector<std::int64_t>> alike;
  for (const std::int64_t sample : choose_samples(layout, options)) {
    ++plan.samples;
    if (plan.sequences.empty() || !plan.sequences.back().add(sample, layout)) {
      plan.sequences.emplace_back().add(sample, layout);
    }
    if (layout.record(sample).picture_count > 0) alike[swap_key(layout, sample)].push_back(sample);
  }
  for (const auto& [key, samples] : alike) {
    if (samples.size() == 1) {
      ++plan.unpaired;
      continue;
    }
    for (std::size_t i = 0; i < samples.size(); ++i) {
      plan.pairs.push_back({samples[i], samples[(i + 1) % samples.size()]});
    }
  }
  std::sort(plan.pairs.begin(), plan.pairs.end(),
            [](const PicturePair& a, const PicturePair& b) { return a.sample < b.sample; });
  return plan;
}

}  // namespace orchard
