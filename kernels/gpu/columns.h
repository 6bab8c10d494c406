// Walks along the columns of [batches, rows, cols], for sums over rows and for factors that belong to
// a column. Each thread owns `width` neighbouring columns and keeps what belongs to them in
// registers while it goes down a strip of rows.
//
// A sum over rows takes two kernels: every block leaves the partial sums of its strip, then
// sum_partials adds the strips. Strips are cut by shape alone and everything is added in a fixed
// order: the same bits every time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/values.h"

namespace orchard::GPU_NAMESPACE {

constexpr int column_threads = 256;
// How many blocks an SM shall hold (__launch_bounds__), so that all strips are at work at once: three where
// registers hold much for each column.
constexpr int column_blocks = 4, heavy_column_blocks = 3;

struct ColumnTiling {
  std::int64_t batches, rows, cols;
  std::int64_t strip = 0;  // rows of a block
  int lanes = 1;           // threads beside each other along a row: a power of two, at most 32
  unsigned tiles = 0;      // blocks beside each other along a row
  unsigned strips = 0;     // blocks below each other

  Extent3 grid() const { return {tiles, strips, static_cast<unsigned>(batches)}; }
  bool empty() const { return batches == 0 || rows == 0 || cols == 0; }
  std::int64_t partial_rows() const { return batches * strips; }  // each of `cols` floats
};

// `width` divides cols. At most about `blocks_of_sm` on each of 128 SMs: with four, 64 KB are in flight on each.
// At least 128 rows in a strip: what a strip reads and writes beside its rows is little.
inline ColumnTiling tile_columns(std::int64_t batches, std::int64_t rows, std::int64_t cols,
                                 int width, int blocks_of_sm = column_blocks) {
  ColumnTiling t{.batches = batches, .rows = rows, .cols = cols};
  while (t.lanes < 32 && t.lanes * width < cols) t.lanes *= 2;
  t.tiles = static_cast<unsigned>((cols + t.lanes * width - 1) / (t.lanes * width));
  const std::int64_t blocks = std::max<std::int64_t>(1, t.tiles * batches);
  const std::int64_t most = std::max<std::int64_t>(1, 128 * blocks_of_sm / blocks);
  t.strip = std::max<std::int64_t>(128, (rows + most - 1) / most);
  t.strips = static_cast<unsigned>((rows + t.strip - 1) / t.strip);
  require(batches < 65536, "{} batches are more than the columns of a grid can hold (65535)",
          batches);
  return t;
}

template <int threads, int width>
struct ColumnSums {
  float value[threads * width];
};

// The calling thread's share of the block's tile.
template <int threads, int width>
class ColumnTile {
 public:
  __device__ explicit ColumnTile(const ColumnTiling& tiling)
      : lanes_(tiling.lanes), cols_(tiling.cols) {
    const int thread = static_cast<int>(threadIdx.x);
    lane = thread & (lanes_ - 1);
    col = (static_cast<std::int64_t>(blockIdx.x) * lanes_ + lane) * width;
    step_ = threads / lanes_;
    row_in_turn_ = thread / lanes_;
    begin_ = blockIdx.y * tiling.strip;
    end_ = begin_ + tiling.strip < tiling.rows ? begin_ + tiling.strip : tiling.rows;
  }

  // Calls use(row, inside, read(row)) turn by turn, as often in all threads of the block: `use` may
  // exchange values between lanes. Where the thread has no row or no column, `inside` is false and
  // nothing was read. Several rows are read before the first is used.
  template <class Read, class Use>
  __device__ void for_each_turn(const Read& read, const Use& use) const {
    constexpr int at_once = 4;
    for (std::int64_t turn = begin_; turn < end_; turn += at_once * step_) {
      const std::int64_t row = turn + row_in_turn_;
      const auto inside = [&](int k) { return row + k * step_ < end_ && col < cols_; };
      decltype(read(row)) held[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        if (inside(k)) held[k] = read(row + k * step_);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) use(row + k * step_, inside(k), held[k]);
    }
  }

  // Calls use(row, read(row)) for the thread's rows.
  template <class Read, class Use>
  __device__ void for_each_row(const Read& read, const Use& use) const {
    for_each_turn(read, [&](std::int64_t row, bool inside, const auto& held) {
      if (inside) use(row, held);
    });
  }

  // Adds `mine` over the threads that share columns and calls finish(col, total) once for each
  // column of the tile. All threads of the block must call it.
  template <class Finish>
  __device__ void sum_columns(const Values<width>& mine, const Finish& finish) const {
    auto& shared = shared_storage<ColumnSums<threads, width>>();
    const int outputs = lanes_ * width;
    __syncthreads();  // an earlier call may still be reading
#pragma unroll
    for (int i = 0; i < width; ++i) {
      shared.value[threadIdx.x * width + static_cast<unsigned>(i)] = mine[i];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < outputs; i += threads) {
      const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * outputs + i;
      if (at >= cols_) continue;
      float total = 0;
      for (int k = 0; k < step_; ++k) total += shared.value[k * outputs + i];
      finish(at, total);
    }
  }

  std::int64_t col;  // the first of the thread's columns; cols or more: it has none
  int lane;          // of `lanes` threads that share a row

 private:
  int lanes_, step_, row_in_turn_;
  std::int64_t cols_, begin_, end_;
};

template <int width>
using Columns = ColumnTile<column_threads, width>;

// Where the block's partial sum of a column goes: partials is [batches, strips, cols].
__device__ inline float* partial_of(float* partials, const ColumnTiling& tiling, std::int64_t col) {
  return partials + (blockIdx.z * tiling.strips + blockIdx.y) * tiling.cols + col;
}

constexpr int partial_threads = 1024;

template <class Finish>
__global__ void __launch_bounds__(partial_threads)
    sum_partials(const float* partials, ColumnTiling tiling, Finish finish) {
  const ColumnTile<partial_threads, 1> tile(tiling);
  const float* const batch = partials + blockIdx.z * tiling.rows * tiling.cols;
  Values<1> total{};
  tile.for_each_row([&](std::int64_t row) { return load(batch + row * tiling.cols + tile.col); },
                    [&](std::int64_t, float value) { total[0] += value; });
  tile.sum_columns(total, [&](std::int64_t col, float sum) { finish(blockIdx.z, col, sum); });
}

// Adds partials [batches, count, cols] over `count` and calls finish(batch, col, total) on the
// device for each column.
template <class Finish>
void launch_sum_partials(Stream& stream, const float* partials, std::int64_t batches,
                         std::int64_t count, std::int64_t cols, const Finish& finish) {
  if (batches == 0 || cols == 0) return;
  ColumnTiling tiling = tile_columns(batches, count, cols, 1);
  tiling.strip = std::max<std::int64_t>(count, 1);
  tiling.strips = 1;
  launch(stream,
         {.kernel = "sum_partials",
          .grid = tiling.grid(),
          .block = {partial_threads},
          .shared_bytes = sizeof(ColumnSums<partial_threads, 1>)},
         sum_partials<Finish>, partials, tiling, finish);
}

// Adds the sums onto a vector of totals: the gradient of a parameter.
struct AddToTotal {
  float* totals;  // [cols]
  __device__ void operator()(std::int64_t, std::int64_t col, float sum) const {
    store(totals + col, load(totals + col) + sum);
  }
};

}  // namespace orchard::GPU_NAMESPACE
