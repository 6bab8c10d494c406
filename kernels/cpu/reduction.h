// Sums over rows with a fixed shape: rows are cut into blocks by their number alone, each block
// sums in row order, and the blocks are added in order. So a weight gradient does not depend on the
// number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/parallel.h"
#include "kernels/device/device.h"

namespace orchard::cpu {

struct RowBlocks {
  std::int64_t count = 0;
  std::int64_t rows = 0;  // of each block but the last
};

// At least 64 rows a block, to make the partial sums cheap beside the rows; at most 16 blocks.
inline RowBlocks row_blocks(std::int64_t rows) {
  const std::int64_t per_block = std::max<std::int64_t>(64, (rows + 15) / 16);
  return {(rows + per_block - 1) / per_block, per_block};
}

// Calls body(begin, end, partial) for every block of rows, where `partial` (zeroed, as long as
// `total`) collects the block's share of a sum; then adds all shares to `total`, an f32 tensor.
// With an absent total the body gets nullptr.
template <class Body>
void sum_over_rows(Stream& stream, std::int64_t rows, const Tensor& total, const Body& body) {
  const RowBlocks blocks = row_blocks(rows);
  const std::int64_t cols = total.numel();
  // Padded so that two blocks never share a cache line.
  const std::int64_t stride = (cols + 31) / 16 * 16;
  float* const partials =
      cols ? reinterpret_cast<float*>(
                 stream.workspace(static_cast<std::size_t>(blocks.count * stride) * sizeof(float)))
           : nullptr;
  parallel_for(blocks.count, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      float* const partial = partials ? partials + block * stride : nullptr;
      if (partial) std::memset(partial, 0, static_cast<std::size_t>(cols) * sizeof(float));
      body(block * blocks.rows, std::min((block + 1) * blocks.rows, rows), partial);
    }
  });
  if (!partials) return;
  float* const out = total.data<float>();
  parallel_for(cols, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = 0; block < blocks.count; ++block) {
      const float* const partial = partials + block * stride;
      for (std::int64_t i = begin; i < end; ++i) out[i] += partial[i];
    }
  });
}

}  // namespace orchard::cpu
