#include "launch/suggest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

namespace orchard {
namespace {

constexpr std::size_t most_suggestions = 3;

// Optimal string alignment: Levenshtein's distance with swaps of neighbours.
std::size_t edits(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before_last.swap(last);
    last.swap(row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::string_view key_of(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? name : name.substr(dot + 1);
}

}  // namespace

std::string suggestion(std::string_view unknown, std::span<const std::string> known) {
  struct Candidate {
    std::size_t distance;
    std::string_view name;
  };
  const std::size_t limit = std::max<std::size_t>(2, unknown.size() / 4);
  std::vector<Candidate> near;
  for (const std::string& name : known) {
    const bool same_key = key_of(name) == key_of(unknown);
    const std::size_t distance = same_key ? 0 : edits(unknown, name);
    if (distance <= limit) near.push_back({distance, name});
  }
  if (near.empty()) return {};
  std::stable_sort(near.begin(), near.end(),
                   [](const auto& a, const auto& b) { return a.distance < b.distance; });
  std::vector<std::string_view> names;
  for (const Candidate& c : near) {
    if (c.distance == near.front().distance && names.size() < most_suggestions) {
      names.push_back(c.name);
    }
  }
  return fmt::format("; did you mean {}?", fmt::join(names, " or "));
}

}  // namespace orchard
