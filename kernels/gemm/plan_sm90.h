// Which tiles a product of bf16 has on sm_90a, and which of its sums are cut in slices of k: a function
// of the shape and the number of SMs.
//
// A tile is 128 rows high. Blocks go through the tiles in rounds, one an SM, and the last round is rarely
// full: [5120, 1280] over 8192 rows is 200 tiles of 256 columns, a round and a half on 132 SMs, and takes
// two. So the first rows of tiles fill whole rounds, and those that are left over are cut in slices of k,
// one a block, which fill the SMs for a part of a round; a second launch adds the slices in their order
// (split_k.h). A product with fewer tiles than SMs is all left over: weight gradients of small models,
// [512, 512] over 32768 rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// How many columns a tile has.
enum class WideTile : std::uint8_t { n_128, n_256 };

constexpr int wide_tile_rows = 128;
constexpr int columns_of(WideTile tile) {
  return tile == WideTile::n_256 ? 256 : 128;
}

// How sums get to c: by the copy engine, through shared memory, where it takes c, which may bring what they
// are added to into the L2 ahead; or each from the register that holds it.
enum class Writing : std::uint8_t { stored, prefetched, direct };

struct WideKernel {
  WideTile tile;
  int blocks = 1;  // that share columns: 1 or 2; their tiles lie one below the other
  Writing writing = Writing::stored;
};

// The first `whole` rows of c are summed in one go, the others in slices of k.
struct Cut {
  std::int64_t whole = 0;
  int slices = 1;
};

// What a tile costs on an H100, in picoseconds.
struct TileCost {
  std::int64_t k;        // one k of it
  std::int64_t writing;  // that the tensor cores wait for its sums to be on their way
};

constexpr TileCost cost_of(WideTile tile) {
  switch (tile) {
    case WideTile::n_256:  // 6.0 TFLOP/s an SM
      return {.k = 10'900, .writing = 900'000};
    case WideTile::n_128:  // an eighth dearer a column, for the rows that the L2 delivers again
      return {.k = 6'200, .writing = 600'000};
  }
  return {};
}

// A second launch begins and ends, and reads the slices' sums from the L2 at 4 TB/s.
constexpr std::int64_t second_launch = 3'000'000;
constexpr std::int64_t sum_read = 1;  // picosecond a sum of 4 bytes

// A product as its plan sees it. `cuttable`: groups' sizes are known to the device alone, or are k.
struct WideProduct {
  std::int64_t m, n, k;
  bool cuttable = true;
};

struct WidePlan {
  WideTile tile = WideTile::n_256;
  Cut cut = {};
  std::int64_t blocks = 0;  // that have something to do
  std::int64_t time = 0;    // estimated, in picoseconds
};

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// With the rows of tiles from number `whole_rows` on cut in `slices`.
constexpr WidePlan plan_with(const WideProduct& c, WideTile tile, int multiprocessors,
                             std::int64_t whole_rows, int slices) {
  const TileCost cost = cost_of(tile);
  const std::int64_t tile_rows = divide_up(c.m, wide_tile_rows);
  const std::int64_t tile_cols = divide_up(c.n, columns_of(tile));
  const std::int64_t whole = whole_rows * tile_cols;
  const std::int64_t cut = (tile_rows - whole_rows) * tile_cols * slices;
  const auto rounds = [&](std::int64_t blocks, std::int64_t k) {
    return divide_up(blocks, multiprocessors) * (k * cost.k + cost.writing);
  };
  const std::int64_t sums =
      slices > 1 ? slices * (c.m - std::min(c.m, whole_rows * wide_tile_rows)) * c.n : 0;
  return {.tile = tile,
          .cut = {.whole = whole_rows * wide_tile_rows, .slices = slices},
          .blocks = whole + cut,
          .time = rounds(whole, c.k) + rounds(cut, divide_up(c.k, slices)) +
                  (slices > 1 ? second_launch + sums * sum_read : 0)};
}

// The plan that is done soonest: uncut where slices would gain less than the estimates are good to. Cut
// tiles are at most two rounds of blocks, which bounds the workspace to their sums, 35 MB on an H100 (and
// tiles at the edges counted as whole ones).
constexpr WidePlan plan_for(const WideProduct& c, WideTile tile, int multiprocessors) {
  const WidePlan uncut = plan_with(c, tile, multiprocessors, 0, 1);
  if (!c.cuttable || uncut.blocks == 0) return uncut;
  const std::int64_t tile_rows = divide_up(c.m, wide_tile_rows);
  const std::int64_t tile_cols = uncut.blocks / tile_rows;
  const std::int64_t full_rounds = uncut.blocks / multiprocessors;
  const std::int64_t whole_rows = full_rounds * multiprocessors / tile_cols;
  const std::int64_t left_over = (tile_rows - whole_rows) * tile_cols;
  if (left_over == 0) return uncut;
  constexpr std::int64_t least_depth = 256;  // of a slice
  const auto most =
      static_cast<int>(std::min(2 * std::int64_t{multiprocessors} / left_over, c.k / least_depth));
  WidePlan best = uncut;
  for (int slices = 2; slices <= most; ++slices) {
    const WidePlan plan = plan_with(c, tile, multiprocessors, whole_rows, slices);
    if (plan.time < best.time) best = plan;
  }
  return 30 * best.time < 29 * uncut.time ? best : uncut;
}

// Tiles of 128 on less than a third of the SMs lose against the sm_80 kernel's tiles of 64 on all of them.
constexpr bool fills_sm90(const WideProduct& c, int multiprocessors) {
  return 3 * plan_for(c, WideTile::n_128, multiprocessors).blocks >= multiprocessors;
}

constexpr WidePlan choose_plan(const WideProduct& c, int multiprocessors) {
  const WidePlan wide = plan_for(c, WideTile::n_256, multiprocessors);
  const WidePlan narrow = plan_for(c, WideTile::n_128, multiprocessors);
  return wide.time <= narrow.time ? wide : narrow;
}

}  // namespace orchard::GPU_NAMESPACE
