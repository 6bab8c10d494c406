#include "data/mixture.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "kernels/core/error.h"

namespace orchard {
namespace {

std::vector<MixtureCategory> single_image_base() {
  return {{.name = "general"},
          {.name = "text_rich", .weighting = Weighting::natural},
          {.name = "science", .weight = 0.1},
          {.name = "math", .weight = 0.5},
          {.name = "code", .weight = 0.2}};
}

std::vector<MixtureCategory> single_image() {
  std::vector<MixtureCategory> categories = single_image_base();
  categories.push_back({.name = "refer_ground", .weight = 2.0});
  return categories;
}

MixtureGroup group_of_one(const char* name, double weight, const char* category) {
  return {.name = name, .weight = weight, .categories = {{.name = category}}};
}

std::vector<std::string> starting_with(std::string_view prefix,
                                       std::span<const std::string> names) {
  std::vector<std::string> found;
  std::copy_if(names.begin(), names.end(), std::back_inserter(found),
               [&](const std::string& name) { return name.starts_with(prefix); });
  return found;
}

MixtureGroup each_alike(std::span<const std::string> names) {
  MixtureGroup group{.name = "datasets"};
  for (const std::string& name : names) group.categories.push_back({.name = name});
  return group;
}

// For each category of the training set the place that draws from it: group and category.
struct Place {
  std::size_t group = 0;
  std::size_t category = 0;
  bool taken = false;
};

std::vector<Place> places_of(const Mixture& mixture, std::span<const std::string> names) {
  std::vector<Place> places(names.size());
  for (std::size_t g = 0; g < mixture.groups.size(); ++g) {
    for (std::size_t c = 0; c < mixture.groups[g].categories.size(); ++c) {
      const MixtureCategory& category = mixture.groups[g].categories[c];
      std::vector<std::string> members = category.members;
      if (members.empty()) members.push_back(category.name);
      for (const std::string& member : members) {
        const auto found = std::find(names.begin(), names.end(), member);
        if (found == names.end()) continue;
        Place& place = places[static_cast<std::size_t>(found - names.begin())];
        require(!place.taken,
                "mixture {}: category {} of the training set belongs to two of its categories, {} "
                "and {}",
                mixture.name, member, mixture.groups[place.group].categories[place.category].name,
                category.name);
        place = {g, c, true};
      }
    }
  }
  return places;
}

// Shares inside a group, from weights and the samples of each category.
std::vector<double> weights_of(const MixtureGroup& group,
                               std::span<const ResolvedCategory> categories) {
  double unit_samples = 0, natural_samples = 0;
  for (std::size_t c = 0; c < categories.size(); ++c) {
    const auto samples = static_cast<double>(categories[c].samples.size());
    if (categories[c].name == group.unit_category) unit_samples = samples;
    if (group.categories[c].weighting == Weighting::natural) natural_samples += samples;
  }
  if (unit_samples == 0) unit_samples = natural_samples;
  std::vector<double> weights;
  for (std::size_t c = 0; c < categories.size(); ++c) {
    const auto samples = static_cast<double>(categories[c].samples.size());
    const MixtureCategory& category = group.categories[c];
    require(std::isfinite(category.weight) && category.weight >= 0,
            "mixture weight {} of category {} must be a number of at least 0", category.weight,
            category.name);
    const bool natural = category.weighting == Weighting::natural && samples > 0;
    weights.push_back(samples == 0 ? 0 : category.weight * (natural ? samples / unit_samples : 1));
  }
  return weights;
}

// Fills the group's shares and drops what has none. Returns false when nothing is left.
bool settle(const MixtureGroup& group, ResolvedGroup& resolved,
            std::vector<std::string>& warnings) {
  const std::vector<double> weights = weights_of(group, resolved.categories);
  double total = 0;
  for (const double weight : weights) total += weight;
  std::vector<ResolvedCategory> kept;
  for (std::size_t c = 0; c < weights.size(); ++c) {
    ResolvedCategory& category = resolved.categories[c];
    if (category.samples.empty()) {
      warnings.push_back(fmt::format(
          "category {} of group {} has no samples in the training set; the rest takes its share",
          category.name, group.name));
    }
    if (weights[c] == 0) continue;
    category.share = weights[c] / total;
    kept.push_back(std::move(category));
  }
  resolved.categories = std::move(kept);
  return !resolved.categories.empty();
}

}  // namespace

Mixture named_mixture(std::string_view name, std::span<const std::string> training_set_categories) {
  Mixture mixture{.name = std::string(name), .unit = MixingUnit::example};
  if (name == "stage1") {
    mixture.unit = MixingUnit::sequence;
    mixture.groups = {group_of_one("caption", 50, "caption"),
                      group_of_one("interleaved", 10, "interleaved"),
                      group_of_one("text", 40, "text")};
    add_members(mixture, "caption", starting_with("caption_", training_set_categories));
  } else if (name == "stage2") {
    mixture.groups = {each_alike(starting_with("ocr_", training_set_categories))};
  } else if (name == "equal") {
    mixture.groups = {each_alike(training_set_categories)};
  } else if (name == "base") {
    mixture.groups = {{"single", 1, single_image_base(), "general"}};
  } else if (name == "single_image") {
    mixture.groups = {{"single", 1, single_image(), "general"}};
  } else if (name == "all") {
    mixture.groups = {{"single", 0.8, single_image(), "general"},
                      group_of_one("multi_image", 0.1, "multi_image"),
                      group_of_one("text", 0.1, "text_only")};
  } else {
    fail("there is no mixture '{}'; there are stage1, stage2, base, single_image, all and equal",
         name);
  }
  return mixture;
}

void add_members(Mixture& mixture, std::string_view category,
                 std::span<const std::string> members) {
  std::vector<std::string> names;
  for (MixtureGroup& group : mixture.groups) {
    for (MixtureCategory& candidate : group.categories) {
      names.push_back(candidate.name);
      if (candidate.name != category) continue;
      if (candidate.members.empty()) candidate.members.push_back(candidate.name);
      candidate.members.insert(candidate.members.end(), members.begin(), members.end());
      return;
    }
  }
  fail("mixture {} has no category '{}'; it has {}", mixture.name, category,
       fmt::join(names, ", "));
}

ResolvedMixture resolve(const Mixture& mixture, const TrainingSetIndex& index,
                        std::span<const std::int64_t> samples) {
  ResolvedMixture resolved{.unit = mixture.unit};
  for (const MixtureGroup& group : mixture.groups) {
    ResolvedGroup& out = resolved.groups.emplace_back();
    out.name = group.name;
    for (const MixtureCategory& category : group.categories) {
      out.categories.emplace_back().name = category.name;
    }
  }
  const std::vector<Place> places = places_of(mixture, index.categories);
  std::vector<std::int64_t> unclaimed(index.categories.size());
  for (const std::int64_t sample : samples) {
    const auto c =
        static_cast<std::size_t>(index.samples[static_cast<std::size_t>(sample)].category);
    const Place place = places[c];
    if (!place.taken) {
      ++unclaimed[c];
    } else {
      resolved.groups[place.group].categories[place.category].samples.push_back(sample);
    }
  }
  for (std::size_t c = 0; c < unclaimed.size(); ++c) {
    if (unclaimed[c] == 0) continue;
    resolved.unused.push_back(fmt::format("{} ({} samples)", index.categories[c], unclaimed[c]));
  }

  std::vector<ResolvedGroup> kept;
  double total = 0;
  for (std::size_t g = 0; g < mixture.groups.size(); ++g) {
    const double weight = mixture.groups[g].weight;
    require(std::isfinite(weight) && weight >= 0,
            "mixture weight {} of group {} must be a number of at least 0", weight,
            mixture.groups[g].name);
    if (!settle(mixture.groups[g], resolved.groups[g], resolved.warnings)) {
      resolved.warnings.push_back(
          fmt::format("group {} of mixture {} has no samples in the training set; the rest takes "
                      "its share of {:.3g}",
                      mixture.groups[g].name, mixture.name, weight));
    } else if (weight > 0) {
      total += resolved.groups[g].share = weight;
      kept.push_back(std::move(resolved.groups[g]));
    }
  }
  require(!kept.empty(),
          "mixture {} finds no sample in the training set, whose categories are {}: choose another "
          "mixture or add these as members",
          mixture.name, fmt::join(index.categories, ", "));
  for (ResolvedGroup& group : kept) group.share /= total;
  resolved.groups = std::move(kept);
  return resolved;
}

std::string ResolvedMixture::report() const {
  std::string text;
  for (const ResolvedGroup& group : groups) {
    for (const ResolvedCategory& category : group.categories) {
      fmt::format_to(std::back_inserter(text), "{:<16} {:<16} {:6.2f} % of draws {:>12} samples\n",
                     group.name, category.name, 100 * group.share * category.share,
                     category.samples.size());
    }
  }
  if (!unused.empty()) {
    fmt::format_to(std::back_inserter(text), "not in this mixture: {}\n", fmt::join(unused, ", "));
  }
  for (const std::string& warning : warnings) {
    fmt::format_to(std::back_inserter(text), "warning: {}\n", warning);
  }
  return text;
}

}  // namespace orchard
