// A layer's ranks in one process: placements as every rank sees them, and random choices.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "parallel/expert_placement.h"

namespace orchard::testing {

// ep x etp ranks, etp running fastest.
struct ExpertWorld {
  std::int64_t experts = 4;
  int ep = 1, etp = 1;
  std::vector<int> node_sizes;  // consecutive ranks on each node

  int size() const { return ep * etp; }

  ExpertPlacement placement(int place) const {
    std::vector<ExpertRank> ranks;
    for (int node = 0; node < static_cast<int>(node_sizes.size()); ++node) {
      for (int i = 0; i < node_sizes[static_cast<std::size_t>(node)]; ++i) {
        const int at = static_cast<int>(ranks.size());
        ranks.push_back({.expert = at / etp, .part = at % etp, .node = node});
      }
    }
    return {experts, ranks, place};
  }

  std::string to_string() const {
    std::string text = fmt::format("{} experts, ep {}, etp {}, nodes of", experts, ep, etp);
    for (const int size : node_sizes) text += fmt::format(" {}", size);
    return text;
  }
};

enum class Choosing {
  random,
  one_expert,     // everything to expert 0
  some_dropped,   // a third of the choices has no expert
  nothing,        // no choice has one
  upper_experts,  // the lower half of the experts stays without a token
};

// [tokens][k] distinct experts, -1 for none.
inline std::vector<std::vector<int>> choose(std::int64_t tokens, int k, std::int64_t experts,
                                            Choosing how, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<std::vector<int>> chosen;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto first = static_cast<std::int64_t>(engine() % static_cast<unsigned>(experts));
    auto& of_token = chosen.emplace_back();
    for (int j = 0; j < k; ++j) {
      std::int64_t expert = (first + j) % experts;
      if (how == Choosing::one_expert) expert = j == 0 ? 0 : -1;
      if (how == Choosing::nothing) expert = -1;
      if (how == Choosing::some_dropped && engine() % 3 == 0) expert = -1;
      if (how == Choosing::upper_experts) expert = experts / 2 + expert % (experts - experts / 2);
      if (std::find(of_token.begin(), of_token.end(), static_cast<int>(expert)) != of_token.end())
        expert = -1;
      of_token.push_back(static_cast<int>(expert));
    }
  }
  return chosen;
}

}  // namespace orchard::testing
