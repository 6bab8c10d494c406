#include "data/selection.h"

#include <algorithm>

#include "data/hash.h"

namespace orchard {

bool Selection::wants(std::string_view category, std::string_view id) {
  const std::uint64_t hash = hash64(id, hash64(category));
  auto found = categories_.find(category);
  if (!decided_) {
    if (found == categories_.end())
      found = categories_.emplace(std::string(category), Category{}).first;
    found->second.hashes.push_back(hash);
    return false;
  }
  return found != categories_.end() && found->second.granted > 0 && hash <= found->second.last;
}

void Selection::decide() {
  for (auto& [name, category] : categories_) {
    auto& hashes = category.hashes;
    const auto limit = limits_.find(name);
    auto count = static_cast<std::int64_t>(hashes.size());
    if (limit != limits_.end()) count = std::min(count, std::max<std::int64_t>(0, limit->second));
    category.granted = count;
    if (count > 0) {
      const auto last = hashes.begin() + (count - 1);
      std::nth_element(hashes.begin(), last, hashes.end());
      category.last = *last;
    }
    hashes = {};
  }
  decided_ = true;
}

std::int64_t Selection::granted(std::string_view category) const {
  const auto found = categories_.find(category);
  return found == categories_.end() ? 0 : found->second.granted;
}

std::int64_t Selection::granted() const {
  std::int64_t sum = 0;
  for (const auto& [name, category] : categories_) sum += category.granted;
  return sum;
}

}  // namespace orchard
