#include "data/sampler.h"

#include <algorithm>

#include "data/counter_hash.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

std::vector<double> shares_of(std::span<const ResolvedCategory> categories) {
  std::vector<double> shares;
  for (const ResolvedCategory& category : categories) {
    require(!category.samples.empty(), "category {} has no samples to draw", category.name);
    shares.push_back(category.share);
  }
  return shares;
}

}  // namespace

WeightedChoice::WeightedChoice(std::span<const double> weights, std::uint64_t key) : key_(key) {
  double sum = 0;
  for (const double weight : weights) {
    require(weight > 0, "a choice needs positive weights, not {}", weight);
    bounds_.push_back(sum += weight);
  }
  require(!bounds_.empty(), "a choice needs at least one item");
  for (double& bound : bounds_) bound /= sum;
}

int WeightedChoice::operator()(std::int64_t n) const {
  if (bounds_.size() == 1) return 0;
  const double u = counter_uniform(key_, static_cast<std::uint64_t>(n));
  return static_cast<int>(std::upper_bound(bounds_.begin(), bounds_.end(), u) - bounds_.begin());
}

Sampler::Sampler(std::span<const ResolvedCategory> categories, std::uint64_t seed)
    : categories_(categories), choice_(shares_of(categories), counter_hash(seed, 0)) {
  for (const ResolvedCategory& category : categories) {
    keys_.push_back(counter_hash(seed, name_hash(category.name)));
  }
}

std::int64_t Sampler::next(Cursor& cursor) const {
  const auto category = static_cast<std::size_t>(choice_(cursor.draws++));
  const std::vector<std::int64_t>& samples = categories_[category].samples;
  const auto drawn = static_cast<std::uint64_t>(cursor.drawn[category]++);
  const std::uint64_t epoch = drawn / samples.size(), place = drawn % samples.size();
  const Permutation order(counter_hash(keys_[category], epoch), samples.size());
  return samples[order(place)];
}

}  // namespace orchard
