// Sums with a fixed shape: rows are cut into blocks by their number alone, each block sums in row
// order, and the blocks are added in order. So a weight gradient does not depend on the number of
// threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "kernels/cpu/parallel.h"
#include "kernels/device/device.h"

namespace orchard::cpu {

struct RowBlocks {
  std::int64_t count = 0;
  std::int64_t rows = 0;  // of each block but the last
};

// At least `least` rows a block, to make the partial sums cheap beside the rows; at most 16 blocks.
inline RowBlocks row_blocks(std::int64_t rows, std::int64_t least = 64) {
  const std::int64_t per_block = std::max(least, (rows + 15) / 16);
  return {(rows + per_block - 1) / per_block, per_block};
}

// One row of `cols` floats per block of rows, in memory that the caller provides.
class PartialSums {
 public:
  PartialSums(std::int64_t rows, std::int64_t cols, std::int64_t least_rows = 64)
      : blocks_(row_blocks(rows, least_rows)), rows_(rows), cols_(cols) {}

  std::size_t size_bytes() const {
    return static_cast<std::size_t>(blocks_.count * stride()) * sizeof(float);
  }

  // Calls body(begin, end, partial) for every block of rows, where `partial` (zeroed, `cols` long,
  // nullptr when cols is 0) collects the block's share.
  template <class Body>
  void collect(std::byte* memory, const Body& body) {
    data_ = reinterpret_cast<float*>(memory);
    parallel_for(blocks_.count, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t block = first; block < last; ++block) {
        float* const partial = cols_ ? data_ + block * stride() : nullptr;
        if (partial) std::memset(partial, 0, static_cast<std::size_t>(cols_) * sizeof(float));
        body(block * blocks_.rows, std::min((block + 1) * blocks_.rows, rows_), partial);
      }
    });
  }

  // total[i] += the collected sum of column offset + i, for i in [0, count).
  void add_to(float* total, std::int64_t offset, std::int64_t count) const {
    parallel_for(count, 1024, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = 0; block < blocks_.count; ++block) {
        const float* const partial = data_ + block * stride() + offset;
        for (std::int64_t i = begin; i < end; ++i) total[i] += partial[i];
      }
    });
  }

 private:
  // Padded so that two blocks never share a cache line.
  std::int64_t stride() const { return cols_ ? (cols_ + 31) / 16 * 16 : 0; }

  float* data_ = nullptr;
  RowBlocks blocks_;
  std::int64_t rows_, cols_;
};

// Calls body(begin, end, partial) for every block of rows, where `partial` (zeroed, as long as all
// `totals` together, in their order) collects the block's share of the sums; then adds all shares
// to the totals, f32 tensors. With absent totals the body gets nullptr.
template <class Body>
void sum_over_rows(Stream& stream, std::int64_t rows, std::initializer_list<Tensor> totals,
                   const Body& body) {
  std::int64_t cols = 0;
  for (const Tensor& total : totals) cols += total.numel();
  PartialSums sums(rows, cols);
  sums.collect(cols ? stream.workspace(sums.size_bytes()) : nullptr, body);
  std::int64_t offset = 0;
  for (const Tensor& total : totals) {
    sums.add_to(total.data<float>(), offset, total.numel());
    offset += total.numel();
  }
}

template <class Body>
void sum_over_rows(Stream& stream, std::int64_t rows, const Tensor& total, const Body& body) {
  sum_over_rows(stream, rows, {total}, body);
}

// The sum of body(begin, end), a double, over blocks of `block` indices that cover [0, n), added in
// their order. `partials` has room for ceil(n / block) values.
template <class Body>
double sum_over_blocks(std::int64_t n, std::int64_t block, double* partials, const Body& body) {
  const std::int64_t count = (n + block - 1) / block;
  parallel_for(count, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      partials[i] = body(i * block, std::min((i + 1) * block, n));
    }
  });
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += partials[i];
  return total;
}

}  // namespace orchard::cpu
