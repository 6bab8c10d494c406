// Which sample a draw yields: a function of the seed and the number of the draw.
//
// Draw n chooses its category by a hash of (seed, n) against the shares. The k-th draw of a
// category is place k mod size of the shuffle that (seed, category, epoch k / size) keys: each
// sample once per epoch of its category, in another order each time. Nothing is stored; a cursor
// only remembers how often each category was drawn before n, which could be counted again from 0.
#pragma once

#include <span>
#include <vector>

#include "data/mixture.h"

namespace orchard {

// Independent choices among weighted items. Immutable.
class WeightedChoice {
 public:
  // Weights are positive; they need not sum to 1.
  WeightedChoice(std::span<const double> weights, std::uint64_t key);

  int items() const { return static_cast<int>(bounds_.size()); }
  // The item of choice n.
  int operator()(std::int64_t n) const;

 private:
  std::vector<double> bounds_;  // cumulative, the last 1
  std::uint64_t key_;
};

class Sampler {
 public:
  // The categories must outlive the sampler.
  Sampler(std::span<const ResolvedCategory> categories, std::uint64_t seed);

  // Stands before draw `draws`.
  struct Cursor {
    std::int64_t draws = 0;
    std::vector<std::int64_t> drawn;  // of each category
  };
  Cursor begin() const { return {0, std::vector<std::int64_t>(categories_.size())}; }

  // Number in the index of the sample that the cursor stands before; the cursor advances.
  std::int64_t next(Cursor&) const;

 private:
  std::span<const ResolvedCategory> categories_;
  WeightedChoice choice_;
  std::vector<std::uint64_t> keys_;  // of each category
};

}  // namespace orchard
