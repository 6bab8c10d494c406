// Products of bf16 tiles on tensor cores (mma.sync, from sm_80 on), for attention. Tiles of rows of
// one head lie in shared memory; scores and sums lie in the registers of the warp whose rows they
// are, 16 at a time, in mma's layout: lane l holds of rows l / 4 and l / 4 + 8 the columns
// 2·(l % 4) and the next one, of every 8.
#pragma once

#include <type_traits>

#include "kernels/attention/attention_gpu.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/vector.h"
#include "kernels/ptx/convert.h"
#include "kernels/ptx/cp_async.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/mma.h"

namespace orchard::GPU_NAMESPACE {

// A row is an odd number of 16-byte units. So eight rows at one column lie in different banks,
// which is what ldmatrix reads at once and what eight lane groups write at once. An XOR swizzle
// would need rows of 8 units, or 16, and addresses that no offset in the instruction can give;
// padding costs 6 to 14 % of the tile.
template <int head_dim, int rows>
struct alignas(16) MmaRows {
  static_assert(head_dim % 16 == 0 && rows % 16 == 0);
  static constexpr int pitch = (head_dim / 8 | 1) * 8;
  bf16 row[rows][pitch];
};

// Where a block's results go. It waits in shared memory, as the loops want every register.
struct Destination {
  int head;
  int first_row;  // of the tensor
  int rows;
};

__device__ inline void put_aside(Destination& shared, const Destination& destination) {
  if (threadIdx.x != 0) return;
  store_shared(&shared.head, destination.head);
  store_shared(&shared.first_row, destination.first_row);
  store_shared(&shared.rows, destination.rows);
}
// After a barrier.
__device__ inline Destination take_back(const Destination& shared) {
  return {load_shared(&shared.head), load_shared(&shared.first_row), load_shared(&shared.rows)};
}

// Sums of mma for 16·m rows and 8·n columns.
template <int m, int n>
using MmaSums = float[m][n][4];

template <int m, int n>
__device__ __forceinline__ void clear(MmaSums<m, n>& sums) {
#pragma unroll
  for (auto& row : sums) {
#pragma unroll
    for (auto& columns : row) {
#pragma unroll
      for (float& sum : columns) sum = 0.0f;
    }
  }
}

__device__ inline int lane() {
  return static_cast<int>(threadIdx.x) % 32;
}
// The same for the lanes, which the compiler sees from the shuffle: no code for diverged warps.
__device__ inline int warp() {
  return __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32, 0);
}

// How threads share out `units` 16-byte units of each row, from unit `begin` on: one has a column of
// them, in steps of some rows. The eight that reach shared memory at once meet no bank twice.
template <int threads, int begin, int units>
struct UnitsOfRows {
  static_assert(units == 2 || units == 4 || units == 8 || units == 16);
  static constexpr int step = threads / units;
  __device__ static int row(int thread) {
    const int i = thread / units;
    if constexpr (units >= 8) {
      return i;
    } else {
      // Rows that are `units` apart, as a row is an odd number of units.
      constexpr int at_once = 8 / units;
      return i / 8 * 8 + i % at_once * units + i / at_once % units;
    }
  }
  __device__ static int column(int thread) { return (begin + thread % units) * 8; }
};

// A row of 80 or 96 is 64 and the rest: with 10 or 12 lanes a row, eight lanes would reach into the next
// row and meet a bank twice.
template <int threads, int head_dim>
using FirstUnits = UnitsOfRows<threads, 0, head_dim == 128 ? 16 : 8>;
template <int threads, int head_dim>
using OtherUnits = UnitsOfRows<threads, 8, (head_dim - 64) / 8>;
template <int head_dim>
inline constexpr bool has_others = head_dim == 80 || head_dim == 96;

// Copies these units of rows of one head. A thread keeps one address.
template <class Units>
class UnitCopier {
 public:
  __device__ UnitCopier(const HeadRows<const bf16>& from, int first, int rows)
      : source_(from.data + std::int64_t{first + row()} * from.stride + column()),
        stride_(from.stride),
        rows_(column() < from.head_dim ? rows - row() : 0) {}

  template <int head_dim, int tile_rows>
  __device__ __forceinline__ void copy(MmaRows<head_dim, tile_rows>& tile, int begin) const {
    constexpr int step = Units::step;
    static_assert(tile_rows % step == 0 || step % tile_rows == 0);
    if (step > tile_rows && row() >= tile_rows) return;
    const bf16* source = source_ + std::int64_t{begin} * stride_;
    bf16* const destination = &tile.row[row()][column()];
#pragma unroll
    for (int i = 0; i < tile_rows; i += step) {
      cp_async_16(destination + i * tile.pitch, source, begin + i < rows_ ? 16 : 0);
      source += step * stride_;
    }
  }

 private:
  __device__ static int row() {
    return Units::row(static_cast<int>(threadIdx.x));
  }
  __device__ static int column() {
    return Units::column(static_cast<int>(threadIdx.x));
  }

  const bf16* source_;
  int stride_;
  int rows_;  // from this thread's first row on
};

struct NoCopier {
  __device__ NoCopier(const HeadRows<const bf16>&, int, int) {}
  template <class Tile>
  __device__ void copy(Tile&, int) const {}
};

// Copies rows of one head to tiles of shared memory.
template <int threads, int head_dim>
class RowCopier {
 public:
  // Of `rows` rows from `first` on.
  __device__ RowCopier(const HeadRows<const bf16>& from, int first, int rows)
      : units_(from, first, rows), others_(from, first, rows) {}

  // Queues the copy of rows [begin, begin + tile_rows). Those that are not there become zero, and so
  // does what the tile has beyond head_dim.
  template <int tile_rows>
  __device__ __forceinline__ void copy(MmaRows<head_dim, tile_rows>& tile, int begin) const {
    units_.copy(tile, begin);
    others_.copy(tile, begin);
  }

 private:
  UnitCopier<FirstUnits<threads, head_dim>> units_;
  std::conditional_t<has_others<head_dim>, UnitCopier<OtherUnits<threads, head_dim>>, NoCopier>
      others_;
};

// sums = a·bᵀ for rows [a_row, a_row + 16·m) of a and [b_row, b_row + 8·n) of b, of which only the
// first `used` are multiplied, rounded up to 16.
template <int m, int n, int head_dim, int a_rows, int b_rows>
__device__ __forceinline__ void multiply_transposed(const MmaRows<head_dim, a_rows>& a, int a_row,
                                                    const MmaRows<head_dim, b_rows>& b, int b_row,
                                                    MmaSums<m, n>& sums, int used = 8 * n) {
  const bf16* const left = &a.row[a_row + lane() % 16][lane() / 16 * 8];
  const bf16* const right = &b.row[b_row + lane() % 8 + lane() / 16 * 8][lane() / 8 % 2 * 8];
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (float& sum : sums[i][j]) sum = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < head_dim; k += 16) {
    unsigned fragments[m][4];
#pragma unroll
    for (int i = 0; i < m; ++i) ldmatrix(fragments[i], left + 16 * i * a.pitch + k);
#pragma unroll
    for (int j = 0; j < n; j += 2) {
      if (8 * j >= used) continue;
      unsigned pair[4];
      ldmatrix(pair, right + 8 * j * b.pitch + k);
#pragma unroll
      for (int i = 0; i < m; ++i) {
        mma_m16n8k16_bf16(sums[i][j], fragments[i], pair[0], pair[1]);
        mma_m16n8k16_bf16(sums[i][j + 1], fragments[i], pair[2], pair[3]);
      }
    }
  }
}

// sums += scores·b for rows [b_row, b_row + 8·n) of b, of which only the first `used` are multiplied,
// rounded up to 16. Scores become bf16: the layout of sums is that of a left operand, two columns of
// 8 for one of 16.
template <int m, int n, int head_dim, int b_rows>
__device__ __forceinline__ void multiply_add(const MmaSums<m, n>& scores,
                                             const MmaRows<head_dim, b_rows>& b, int b_row,
                                             MmaSums<m, head_dim / 8>& sums, int used = 8 * n) {
  const bf16* const right = &b.row[b_row + lane() % 16][lane() / 16 * 8];
#pragma unroll
  for (int k = 0; k < n; k += 2) {
    if (8 * k >= used) continue;
    unsigned fragments[m][4];
#pragma unroll
    for (int i = 0; i < m; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float(&pair)[4] = scores[i][k + r / 2];
        fragments[i][r] = pack_bf16x2(pair[r % 2 * 2], pair[r % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int j = 0; j < head_dim / 8; j += 2) {
      unsigned pair[4];
      ldmatrix_trans(pair, right + 8 * k * b.pitch + 8 * j);
#pragma unroll
      for (int i = 0; i < m; ++i) {
        mma_m16n8k16_bf16(sums[i][j], fragments[i], pair[0], pair[1]);
        mma_m16n8k16_bf16(sums[i][j + 1], fragments[i], pair[2], pair[3]);
      }
    }
  }
}

// Stores a warp's sums, rounded to bf16, as rows [first, first + count). They pass through rows
// [tile_row, tile_row + 16·m) of a tile that only this warp reads: 16 bytes a lane then go to
// consecutive addresses.
template <int m, int head_dim, int rows>
__device__ void store_rows(MmaRows<head_dim, rows>& tile, int tile_row,
                           const MmaSums<m, head_dim / 8>& sums, const HeadRows<bf16>& to,
                           std::int64_t first, int count) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int j = 0; j < head_dim / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bf16* const at =
            &tile.row[tile_row + 16 * i + 8 * half + lane() / 4][8 * j + lane() % 4 * 2];
        store_shared(reinterpret_cast<unsigned*>(at),
                     pack_bf16x2(sums[i][j][2 * half], sums[i][j][2 * half + 1]));
      }
    }
  }
  __syncwarp();
  const auto store_units = [&](auto units) {
    const int c = units.column(lane());
    for (int r = units.row(lane()); r < 16 * m; r += units.step) {
      if (r >= count || c >= to.head_dim) continue;
      store(reinterpret_cast<uint4*>(to.data + (first + r) * to.stride + c),
            load_shared(reinterpret_cast<const uint4*>(&tile.row[tile_row + r][c])));
    }
  };
  store_units(FirstUnits<32, head_dim>());
  if constexpr (has_others<head_dim>) store_units(OtherUnits<32, head_dim>());
}

}  // namespace orchard::GPU_NAMESPACE
