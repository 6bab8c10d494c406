// A tile of c by one block, from sm_80 on: bf16 operands through a ring of shared-memory stages,
// mma.sync, fp32 sums in registers.
//
// An operand's tile lies in shared memory as it does in global memory: rows of the dimension that is
// not contiguous. ldmatrix reads 8 rows of 16 bytes at once, from one 16-byte column; so that they
// meet different banks, column c of a row lies at c xor a number that differs between rows sharing a
// 128-byte line.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/operand_rows.h"
#include "kernels/gemm/schedule.h"
#include "kernels/ptx/cp_async.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/mma.h"

namespace orchard::GPU_NAMESPACE {

// 16 bytes at a time asynchronously, or element by element where rows are not aligned to that.
enum class Loads : std::uint8_t { vectors, elements };

// The cut of a block's work. A warp computes [m / warps_m, n / warps_n].
struct TileConfig {
  int m, n, k;
  int stages;
  int warps_m, warps_n;
  int blocks_per_sm;  // that registers must leave room for

  constexpr int threads() const { return 32 * warps_m * warps_n; }
  constexpr TileSides sides() const { return {m, n}; }
};

template <TileConfig tile>
struct GemmStages {
  alignas(128) bf16 a[tile.stages][tile.m * tile.k];
  alignas(128) bf16 b[tile.stages][tile.n * tile.k];
};

// One operand.
struct MatrixOperand {
  const bf16* data;             // [mn, k], or [k, mn] when mn-major
  std::int64_t stride;          // elements from row to row
  const int* source = nullptr;  // of a gathered operand: which rows; null: all, in order
};

constexpr int chunk = 8;  // elements of 16 bytes

// A tile of an operand, [side, depth], in shared memory.
template <Major major, int side, int depth>
struct OperandTile {
  static constexpr int rows = major == Major::k ? side : depth;
  static constexpr int chunks_per_row = (major == Major::k ? depth : side) / chunk;
  static_assert(chunks_per_row == 4 || chunks_per_row % 8 == 0, "rows of 64 or n x 128 bytes");

  // Where chunk `c` of `row` begins. Rows of 64 bytes lie in pairs on a line of the banks.
  __device__ static int offset(int row, int c) {
    const int mask = chunks_per_row == 4 ? row / 2 % 4 : row % 8;
    return (row * chunks_per_row + (c ^ mask)) * chunk;
  }

  // Four matrices for mma at [mn, k], the first two of the first register's chunk of rows. Fragments
  // of a and b differ in which dimension comes first, and so do the majors: `rows_first` when the
  // first two matrices are neighbours in the dimension of the rows.
  template <bool rows_first>
  __device__ static void load_fragment(unsigned (&registers)[4], const bf16* tile, int mn, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = rows_first ? lane % 16 : lane / 16 * 8 + lane % 8;
    const int c = rows_first ? lane / 16 : lane / 8 % 2;
    if constexpr (major == Major::k) {
      ldmatrix(registers, tile + offset(mn + row, k / chunk + c));
    } else {
      ldmatrix_trans(registers, tile + offset(k + row, mn / chunk + c));
    }
  }
};

// Fetches a stage of an operand: the tile of these rows and columns, zeros where there are none.
template <class Shared, Loads loads, int threads, class Rows>
__device__ void fetch_tile(bf16* shared, const MatrixOperand& operand, const Rows& rows,
                           const Span& cols) {
  constexpr int chunks = Shared::rows * Shared::chunks_per_row;
  static_assert(chunks % threads == 0, "every thread fetches the same number of chunks");
#pragma unroll
  for (int i = 0; i < chunks / threads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * threads;
    const int row = at / Shared::chunks_per_row, c = at % Shared::chunks_per_row;
    const int col = cols.first + c * chunk;
    const bool inside = rows.has(i, row) && col < cols.end;
    bf16* const destination = shared + Shared::offset(row, c);
    const bf16* const source =
        inside ? operand.data + rows.at(i, row) * operand.stride + col : operand.data;
    if constexpr (loads == Loads::vectors) {
      cp_async_16(destination, source, inside ? 16 : 0);
    } else {
      unsigned word[4] = {};
      for (int e = 0; e < chunk; ++e) {
        if (inside && col + e < cols.end) {
          word[e / 2] |= static_cast<unsigned>(load(source + e).bits) << (e % 2 * 16);
        }
      }
      store_shared(reinterpret_cast<uint4*>(destination),
                   uint4{word[0], word[1], word[2], word[3]});
    }
  }
}

template <TileConfig tile>
struct Accumulators {
  static constexpr int rows = tile.m / tile.warps_m / 16;
  static constexpr int cols = tile.n / tile.warps_n / 8;
  static_assert(cols % 4 == 0, "fragments of b come in pairs, those of an epilogue in fours");
  float value[rows][cols][4];
};

// The sums of work's tile; each warp holds its part. All threads of the block call it.
template <TileConfig tile, Major a_major, Major b_major, Loads loads, Gathers gathers>
__device__ void multiply_tile(GemmStages<tile>& shared, const MatrixOperand& a,
                              const MatrixOperand& b, const Work& work, Accumulators<tile>& sums) {
  using A = OperandTile<a_major, tile.m, tile.k>;
  using B = OperandTile<b_major, tile.n, tile.k>;
  using Sums = Accumulators<tile>;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / tile.warps_n * (tile.m / tile.warps_m);
  const int warp_col = warp % tile.warps_n * (tile.n / tile.warps_n);
  const int steps = tiles_in(work.k, tile.k);

  // Rows of a gathered a are those of every step, rows of a gathered b those of the next one.
  constexpr int threads = tile.threads();
  [[maybe_unused]] NamedRows<A::rows, A::chunks_per_row, threads> a_rows;
  [[maybe_unused]] NamedRows<B::rows, B::chunks_per_row, threads> b_rows;
  const auto look_up_step = [&](int k) {
    b_rows.look_up(b.source, {work.first_k + k, work.first_k + work.k});
  };
  if constexpr (gathers == Gathers::a) {
    static_assert(a_major == Major::k);
    a_rows.look_up(a.source, {work.first_row + work.row, work.first_row + work.m});
  } else if constexpr (gathers == Gathers::b) {
    static_assert(b_major == Major::mn);
    look_up_step(0);
  }
  // Called for one step after the other.
  const auto fetch = [&](int step) {
    if (step < steps) {
      const int stage = step % tile.stages, k = step * tile.k;
      const Span height{work.row, work.m}, width{work.col, work.n}, depth{k, work.k};
      if constexpr (gathers == Gathers::a) {
        fetch_tile<A, loads, threads>(shared.a[stage], a, a_rows, depth);
      } else if constexpr (a_major == Major::k) {
        fetch_tile<A, loads, threads>(shared.a[stage], a, height, depth);
      } else {
        fetch_tile<A, loads, threads>(shared.a[stage], a, depth, height);
      }
      if constexpr (gathers == Gathers::b) {
        fetch_tile<B, loads, threads>(shared.b[stage], b, b_rows, width);
        look_up_step(k + tile.k);
      } else if constexpr (b_major == Major::k) {
        fetch_tile<B, loads, threads>(shared.b[stage], b, width, depth);
      } else {
        fetch_tile<B, loads, threads>(shared.b[stage], b, depth, width);
      }
    }
    cp_async_commit();  // also when empty, so that the number of groups tells the step
  };

#pragma unroll
  for (int i = 0; i < Sums::rows; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::cols; ++j) {
      for (float& sum : sums.value[i][j]) sum = 0;
    }
  }
#pragma unroll
  for (int step = 0; step < tile.stages - 1; ++step) fetch(step);

  for (int step = 0; step < steps; ++step) {
    cp_async_wait<tile.stages - 2>();
    // Everybody's part of this step's stage is there, and everybody is done with the last step's,
    // which is fetched into next.
    __syncthreads();
    fetch(step + tile.stages - 1);
    const bf16* const a_tile = shared.a[step % tile.stages];
    const bf16* const b_tile = shared.b[step % tile.stages];
#pragma unroll
    for (int k = 0; k < tile.k; k += 16) {
      unsigned a_fragment[Sums::rows][4], b_fragment[Sums::cols / 2][4];
#pragma unroll
      for (int i = 0; i < Sums::rows; ++i) {
        A::template load_fragment<a_major == Major::k>(a_fragment[i], a_tile, warp_row + 16 * i, k);
      }
#pragma unroll
      for (int j = 0; j < Sums::cols / 2; ++j) {
        B::template load_fragment<b_major == Major::mn>(b_fragment[j], b_tile, warp_col + 16 * j,
                                                        k);
      }
#pragma unroll
      for (int i = 0; i < Sums::rows; ++i) {
#pragma unroll
        for (int j = 0; j < Sums::cols; ++j) {
          mma_m16n8k16_bf16(sums.value[i][j], a_fragment[i], b_fragment[j / 2][j % 2 * 2],
                            b_fragment[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
}

// Writes the tile to c [m, n]. All threads of the block call it.
template <TileConfig tile>
__device__ void write_tile(GemmStages<tile>& shared, const Accumulators<tile>& sums,
                           const Epilogue<bf16>& out, const Work& work) {
  using Sums = Accumulators<tile>;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = work.row + warp / tile.warps_n * (tile.m / tile.warps_m);
  const int col = work.col + warp % tile.warps_n * (tile.n / tile.warps_n);
  if (out.kind == EpilogueKind::none && out.vectors) {
#pragma unroll
    for (int i = 0; i < Sums::rows; ++i) {
#pragma unroll
      for (int j = 0; j < Sums::cols; j += 2) {
        write_fragments(out, work, sums.value[i][j], sums.value[i][j + 1], row + 16 * i,
                        col + 8 * j);
      }
    }
    return;
  }
  static_assert(tile.threads() / 32 * sizeof(WarpStage) <= sizeof shared);
  WarpStage& stage = reinterpret_cast<WarpStage*>(&shared)[warp];
  __syncthreads();  // everybody is done with the operands
  constexpr int in_row = Sums::cols / 4, turns = Sums::rows * in_row;
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    const int own_row = row + turn / in_row * WarpStage::rows;
    const int own_col = col + turn % in_row * WarpStage::cols;
    const StageQuads others = read_others(out, work, own_row, own_col);
    take_turn<turns>(turn,
                     [&](int i) { fill_stage(stage, sums.value[i / in_row][i % in_row * 4]); });
    finish_stage(out, work, stage, others, own_row, own_col);
  }
}

}  // namespace orchard::GPU_NAMESPACE
