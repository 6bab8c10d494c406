// AdaFactor where a matrix is spread over ranks: by tensor and expert parallelism over columns or
// rows, by sharded optimizer state over rows. Row and column means and the clipping of each block
// are those of the whole. What ranks must add up is packed into two sums a step.
#pragma once

#include <vector>

#include "parallel/sharded_step.h"
#include "train/optimizer_state.h"

namespace orchard {

class SpreadAdaFactor {
 public:
  // `slots` are those of shards.store().parameters(), in that order.
  SpreadAdaFactor(Device& device, const FlatShards& shards, const OptimizerConfig& config);

  void update(Stream& stream, const std::vector<OptimizerSlots>& slots, const OptimizerStep& step,
              ValueGatherer* gatherer);

 private:
  // Where a parameter stands in the packed sums.
  struct Entry {
    const Parameter* parameter = nullptr;
    std::size_t number = 0;  // among the parameters that are here
    bool factored = false;
    std::int64_t col_sums = 0;       // of all columns
    std::int64_t row_sums = -1;      // of all rows, where columns are spread; else -1
    std::int64_t own_row_sums = -1;  // in the local sums, where they are not
    std::int64_t square = 0;

    std::int64_t first_row() const;
    std::int64_t first_col() const;
  };

  void sum_squares(Stream& stream, const OptimizerStep& step) const;
  void measure(Stream& stream, const std::vector<OptimizerSlots>& slots,
               const OptimizerStep& step) const;
  Tensor row_sums(const Entry& entry) const;

  const FlatShards& shards_;
  OptimizerConfig config_;
  std::vector<Entry> entries_;  // of the parameters that are here, by number
  Buffer memory_;
  Tensor sums_;     // f32, over all ranks: column sums, and row sums where columns are spread
  Tensor local_;    // f32: row sums of this rank's rows, and columns that nobody counts
  Tensor squares_;  // f32, over all ranks: of each parameter's raw update
  Tensor discarded_;
};

}  // namespace orchard
