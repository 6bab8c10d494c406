#include "parallel/pipeline_balance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/error.h"

namespace orchard {
namespace {

constexpr double impossible = std::numeric_limits<double>::infinity();

// The best way to cut the first n blocks into s stages is the best over its last cut.
class CutTable {
 public:
  CutTable(std::size_t blocks, std::size_t stages)
      : blocks_(blocks),
        stages_(stages),
        best_((stages + 1) * (blocks + 1), impossible),
        last_cut_(best_.size()) {
    best_[0] = 0;
  }

  // `join(value of the stages before, first block, end)` is the value with the last stage, the
  // smaller the better. Of equal values the earliest cut wins.
  template <class Join>
  void fill(const Join& join) {
    for (std::size_t s = 1; s <= stages_; ++s) {
      for (std::size_t end = s; end <= blocks_; ++end) {
        for (std::size_t first = s - 1; first < end; ++first) {
          const double before = best_[at(s - 1, first)];
          if (before == impossible) continue;
          const double value = join(before, first, end);
          if (value >= best_[at(s, end)]) continue;
          best_[at(s, end)] = value;
          last_cut_[at(s, end)] = first;
        }
      }
    }
  }

  double best() const { return best_.back(); }

  std::vector<int> cuts() const {
    std::vector<int> cuts(stages_ + 1);
    std::size_t end = blocks_;
    for (std::size_t s = stages_; s > 0; --s) {
      cuts[s] = static_cast<int>(end);
      end = last_cut_[at(s, end)];
    }
    return cuts;
  }

 private:
  std::size_t at(std::size_t s, std::size_t end) const { return s * (blocks_ + 1) + end; }

  std::size_t blocks_, stages_;
  std::vector<double> best_;
  std::vector<std::size_t> last_cut_;
};

}  // namespace

std::vector<int> balanced_cuts(std::span<const double> costs, int stages) {
  const auto count = static_cast<std::size_t>(std::max(stages, 1));
  require(stages >= 1 && costs.size() >= count,
          "{} blocks cannot be cut into {} stages: each needs one", costs.size(), stages);
  for (const double cost : costs)
    require(std::isfinite(cost) && cost >= 0, "a block that costs {}: must be a time", cost);
  std::vector<double> sums(costs.size() + 1);
  std::partial_sum(costs.begin(), costs.end(), sums.begin() + 1);
  const auto stage = [&](std::size_t first, std::size_t end) { return sums[end] - sums[first]; };

  CutTable largest(costs.size(), count);
  largest.fill([&](double before, std::size_t first, std::size_t end) {
    return std::max(before, stage(first, end));
  });
  CutTable even(costs.size(), count);
  even.fill([&](double before, std::size_t first, std::size_t end) {
    const double cost = stage(first, end);
    return cost > largest.best() ? impossible : before + cost * cost;
  });
  return even.cuts();
}

std::vector<double> stage_costs(std::span<const double> costs, std::span<const int> cuts) {
  std::vector<double> stages;
  for (std::size_t s = 0; s + 1 < cuts.size(); ++s)
    stages.push_back(std::accumulate(costs.begin() + cuts[s], costs.begin() + cuts[s + 1], 0.0));
  return stages;
}

}  // namespace orchard
