// Category mixtures: how much of each kind of data a stage sees.
//
// A mixture is groups with weights; a group is categories with weights relative to each other; a
// category gathers categories of the training set (its members), whose samples are drawn alike.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/index.h"

namespace orchard {

enum class MixingUnit : std::uint8_t {
  sequence,  // each packed sequence holds one group (stage 1)
  example,   // each draw chooses its category (stages 2 and 3)
};

enum class Weighting : std::uint8_t {
  fixed,    // the weight itself
  natural,  // the weight times samples / samples of the group's unit category
};

struct MixtureCategory {
  std::string name;
  double weight = 1;  // α
  Weighting weighting = Weighting::fixed;
  std::vector<std::string>
      members{};  // categories of the training set; empty: the one of this name
};

struct MixtureGroup {
  std::string name;
  double weight = 1;  // w
  std::vector<MixtureCategory> categories{};
  // The category that natural weights count in. Absent or empty: all natural samples of the group.
  std::string unit_category{};
};

struct Mixture {
  std::string name;
  MixingUnit unit = MixingUnit::example;
  std::vector<MixtureGroup> groups{};
};

// The mixtures of the recipe, over the categories that `orchard pack` writes:
//   stage1        caption and caption_* : interleaved : text = 50 : 10 : 40, by sequence
//   stage2        every ocr_* alike
//   base          general 1, text_rich natural, science 0.1, math 0.5, code 0.2
//   single_image  base and refer_ground 2
//   all           single_image 0.8, multi_image 0.1, text_only 0.1
//   equal         every category of the training set alike
// Throws on another name, listing these.
Mixture named_mixture(std::string_view name, std::span<const std::string> training_set_categories);

// Lets `category` of the mixture draw from these categories of the training set, too. Throws when
// the mixture has no such category.
void add_members(Mixture& mixture, std::string_view category, std::span<const std::string> members);

// A mixture over the samples there are.
struct ResolvedCategory {
  std::string name;
  double share = 0;                   // of its group; the shares of a group sum to 1
  std::vector<std::int64_t> samples;  // numbers in the index, ascending
};

struct ResolvedGroup {
  std::string name;
  double share = 0;  // of the mixture; the shares sum to 1
  std::vector<ResolvedCategory> categories;
};

struct ResolvedMixture {
  MixingUnit unit = MixingUnit::example;
  std::vector<ResolvedGroup> groups{};
  std::vector<std::string> warnings{};  // dropped categories and groups
  std::vector<std::string> unused{};    // categories of the training set outside the mixture

  // A table of groups, categories, shares and samples, what is not used, then the warnings.
  std::string report() const;
};

// Categories without samples are dropped and the rest of the group is renormalised; so are groups
// without categories. `samples` are the candidates: the training split, as far as it can be packed.
// Throws when nothing remains, or when two categories claim one member.
ResolvedMixture resolve(const Mixture& mixture, const TrainingSetIndex& index,
                        std::span<const std::int64_t> samples);

}  // namespace orchard
