// Which of the samples that sources could make are made. Sources go through all of them twice: the
// first time the selection only takes notes, the second time it grants, in each category, those
// whose hash is among the smallest, up to the category's limit. So the choice depends on content
// only, is spread over all sources, and nothing is decoded that is not used.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace orchard {

class Selection {
 public:
  // Categories not named have no limit.
  explicit Selection(std::map<std::string, std::int64_t, std::less<>> limits)
      : limits_(std::move(limits)) {}

  // `id` is unique within the category.
  bool wants(std::string_view category, std::string_view id);

  // Ends the first time through.
  void decide();

  // After decide: samples granted, of one category and of all.
  std::int64_t granted(std::string_view category) const;
  std::int64_t granted() const;

 private:
  struct Category {
    std::vector<std::uint64_t> hashes;  // until decided
    std::uint64_t last = 0;             // the largest hash granted
    std::int64_t granted = 0;
  };

  std::map<std::string, std::int64_t, std::less<>> limits_;
  std::map<std::string, Category, std::less<>> categories_;
  bool decided_ = false;
};

}  // namespace orchard
