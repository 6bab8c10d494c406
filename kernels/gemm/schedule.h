// Which part of which product a block of a GEMM kernel computes. Kernels know one product; the
// schedules make them dense or grouped.
//
// A grid has at least one block for each tile of c; blocks without one leave at once. The host of a
// grouped product knows neither the groups' sizes nor, therefore, their tiles: it launches as many as
// there can be, and each block finds its own from row_offsets.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gemm/gemm.h"
#include "kernels/gemm/operand_rows.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

// The dimension of an operand that is contiguous in memory: k, or m (of a), n (of b).
enum class Major : std::uint8_t { k, mn };

// c [m, n] = op(a) [m, k] · op(b) [k, n] of matrices that begin `a`, `b` and `c` elements into the
// operands, and the tile of c whose first element is [row, col]. An operand whose rows an index may name
// begins nowhere: its rows count from the operand's first one.
struct Work {
  std::int64_t a = 0, b = 0, c = 0;
  int m, n, k;
  int row, col;
  // The same as coordinates: where m begins in a and c, where k begins in a and b, which matrix of a, of b
  // and of c.
  int first_row = 0, first_k = 0, a_matrix = 0, b_matrix = 0, c_matrix = 0;
};

// The sides of a tile.
struct TileSides {
  int m, n;
};

constexpr int tiles_in(std::int64_t extent, int side) {
  return static_cast<int>((extent + side - 1) / side);
}

struct TilePosition {
  int m, n;
};

// Tile number `number` of a matrix of tiles. Blocks run roughly in the order of their numbers, and
// those that run together should share rows and columns: they walk through bands of tiles down and then
// one to the right. A band has eight tiles, so that the 264 blocks of 128 x 128 on an H100 touch 8 tiles of
// a and 33 of b where whole rows of tiles would touch 1 and 264; sixteen of tiles that are twice as wide as
// high, of which 132 then touch 2048 rows of a and 2112 of b.
__device__ inline TilePosition tile_position(int number, TileSides tile, int tiles_m, int tiles_n) {
  const int band = tile.n > tile.m ? 16 : 8;
  const int first = number / (band * tiles_n) * band;
  const int height = tiles_m - first < band ? tiles_m - first : band;
  const int within = number - first * tiles_n;
  return {first + within % height, within / height};
}

// One product; or its sums over slices of k, c being f32 [slices, m, n]; or a batch of products. Slices and
// products are parts alike, one [m, n] of c each, and differ in where operands go on from part to part.
struct DenseSchedule {
  // Whether other groups' data follow where a product's k ends. (Slices end on whole steps of k.)
  static constexpr bool ends_in_data = false;
  static constexpr Gathers gathers = Gathers::nothing;
  int m, n, k;
  int parts;
  int depth;                    // k of a part; of the last slice at most
  std::int64_t a_step, b_step;  // from one part to the next: elements,
  int k_step, matrix_step;      // and coordinates

  constexpr int tiles(TileSides tile) const { return tiles_in(m, tile.m) * tiles_in(n, tile.n); }
  constexpr unsigned blocks(TileSides tile) const {
    return static_cast<unsigned>(tiles(tile)) * static_cast<unsigned>(parts);
  }

  __device__ bool find(int block, TileSides tile, Work& work) const {
    const int part = block / tiles(tile), first_k = part * k_step;
    const TilePosition at =
        tile_position(block % tiles(tile), tile, tiles_in(m, tile.m), tiles_in(n, tile.n));
    work = {.a = part * a_step,
            .b = part * b_step,
            .c = std::int64_t{part} * m * n,
            .m = m,
            .n = n,
            .k = k - first_k < depth ? k - first_k : depth,
            .row = at.m * tile.m,
            .col = at.n * tile.n,
            .first_k = first_k,
            .a_matrix = part * matrix_step,
            .b_matrix = part * matrix_step,
            .c_matrix = part};
    return true;
  }
};

// c[rows of g] = a[rows of g] · op(b[g]): the groups' rows of tiles lie one after the other.
struct GroupedRowsSchedule {
  // Whether other groups' data follow where a product's k ends.
  static constexpr bool ends_in_data = false;
  static constexpr Gathers gathers = Gathers::a;
  const int* row_offsets;  // [groups + 1]
  int groups;
  int max_rows;
  int n, k;

  // Every group may end in a tile that is not full.
  constexpr int tile_rows(TileSides tile) const { return max_rows / tile.m + groups; }
  constexpr unsigned blocks(TileSides tile) const {
    return static_cast<unsigned>(tile_rows(tile)) * static_cast<unsigned>(tiles_in(n, tile.n));
  }

  // Called by whole warps.
  __device__ bool find(int block, TileSides tile, Work& work) const {
    const TilePosition at = tile_position(block, tile, tile_rows(tile), tiles_in(n, tile.n));
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int before = 0;  // rows of tiles in the groups before `first`
    for (int first = 0; first < groups; first += 32) {
      const int group = first + lane;
      const int begin = group < groups ? load_readonly(row_offsets + group) : 0;
      const int end = group < groups ? load_readonly(row_offsets + group + 1) : 0;
      int until = (end - begin + tile.m - 1) / tile.m;
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(all_lanes, until, static_cast<unsigned>(distance));
        if (lane >= distance) until += other;
      }
      // The first lane whose group ends after this row of tiles has it.
      const unsigned later = __ballot_sync(all_lanes, before + until > at.m);
      if (later != 0) {
        const int owner = __ffs(static_cast<int>(later)) - 1;
        const int own_begin = __shfl_sync(all_lanes, begin, owner);
        const int rows = __shfl_sync(all_lanes, end, owner) - own_begin;
        const int own_until = before + __shfl_sync(all_lanes, until, owner);
        const int tile_of_group = at.m - (own_until - (rows + tile.m - 1) / tile.m);
        work = {.b = std::int64_t{first + owner} * n * k,
                .c = std::int64_t{own_begin} * n,
                .m = rows,
                .n = n,
                .k = k,
                .row = tile_of_group * tile.m,
                .col = at.n * tile.n,
                .first_row = own_begin,
                .b_matrix = first + owner};
        return true;
      }
      before += __shfl_sync(all_lanes, until, 31);
    }
    return false;
  }
};

// c[g] [m, n] = a[rows of g]^T · b[rows of g]: the groups' rows are what is summed over. One block
// sums all of them, in order.
struct GroupedDepthSchedule {
  // Whether other groups' data follow where a product's k ends.
  static constexpr bool ends_in_data = true;
  static constexpr Gathers gathers = Gathers::b;
  const int* row_offsets;  // [groups + 1]
  int groups;
  int m, n;

  constexpr int tiles(TileSides tile) const { return tiles_in(m, tile.m) * tiles_in(n, tile.n); }
  constexpr unsigned blocks(TileSides tile) const {
    return static_cast<unsigned>(groups) * static_cast<unsigned>(tiles(tile));
  }

  __device__ bool find(int block, TileSides tile, Work& work) const {
    const int group = block / tiles(tile);
    const TilePosition at =
        tile_position(block % tiles(tile), tile, tiles_in(m, tile.m), tiles_in(n, tile.n));
    const int begin = load_readonly(row_offsets + group);
    const int rows = load_readonly(row_offsets + group + 1) - begin;
    work = {.a = std::int64_t{begin} * m,
            .c = std::int64_t{group} * m * n,
            .m = m,
            .n = n,
            .k = rows,
            .row = at.m * tile.m,
            .col = at.n * tile.n,
            .first_k = begin,
            .c_matrix = group};
    return rows > 0;
  }
};

// An extent as kernels count it, which leaves room for a tile beyond it.
inline int extent(std::int64_t value) {
  require(value <= (1 << 30), "a matrix product on a GPU counts extents to 2^30, not {}", value);
  return static_cast<int>(value);
}

inline DenseSchedule schedule_of_batch(const GemmSizes& sizes) {
  const int k = extent(sizes.k);
  return {.m = extent(sizes.m),
          .n = extent(sizes.n),
          .k = k,
          .parts = extent(sizes.batch),
          .depth = k,
          .a_step = sizes.m * sizes.k,
          .b_step = sizes.k * sizes.n,
          .k_step = 0,
          .matrix_step = 1};
}

// Slices are multiples of 64 in k: whole steps of every kernel, and 16 bytes of every operand. There may
// be fewer than are asked for, and a batch has none.
inline DenseSchedule schedule_of(const Gemm& op, int slices) {
  const GemmSizes sizes = sizes_of(op);
  if (sizes.batch > 1) return schedule_of_batch(sizes);
  const int k = extent(sizes.k);
  const int depth = std::max(1, tiles_in(tiles_in(k, slices), 64)) * 64;
  return {.m = extent(sizes.m),
          .n = extent(sizes.n),
          .k = k,
          .parts = std::max(1, tiles_in(k, depth)),
          .depth = depth,
          .a_step = depth * (op.transpose_a == Transpose::yes ? sizes.m : 1),
          .b_step = depth * (op.transpose_b == Transpose::yes ? 1 : sizes.n),
          .k_step = depth,
          .matrix_step = 0};
}

inline GroupedRowsSchedule schedule_of(const GroupedGemm& op) {
  return {.row_offsets = op.row_offsets.data<std::int32_t>(),
          .groups = extent(op.b.dim(0)),
          .max_rows = extent(op.c.dim(0)),
          .n = extent(op.c.dim(1)),
          .k = extent(op.a.dim(1))};
}

inline GroupedDepthSchedule schedule_of(const GroupedGemmWeightGradient& op) {
  return {.row_offsets = op.row_offsets.data<std::int32_t>(),
          .groups = extent(op.d_b.dim(0)),
          .m = extent(op.d_b.dim(1)),
          .n = extent(op.d_b.dim(2))};
}

}  // namespace orchard::GPU_NAMESPACE
