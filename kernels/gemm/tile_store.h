// How a warp of gemm_sm90.cu writes its 16 rows of a tile of c: box by box through shared memory of its
// own, from where the copy engine takes them to c or adds them to what c holds.
//
// A box is 16 rows of 128 bytes, so that stores fill whole lines, where a warp that writes from registers
// fills sectors. The warp waits for nothing but its oldest box to have been read: it multiplies its next
// tile while the copies, and the additions in the L2, are under way. Each element is added to once a
// launch, in fp32 with one rounding (subnormals count as zero, as in any addition in global memory).
//
// Rows of c that are not the warp's to write, a next group's, begin on a multiple of 32, so that a box is
// written as a whole or not at all; what lies outside c the copy engine leaves out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/bulk_copy.h"
#include "kernels/ptx/convert.h"
#include "kernels/ptx/elect.h"
#include "kernels/ptx/fence.h"
#include "kernels/ptx/stmatrix.h"
#include "kernels/ptx/tma.h"

namespace orchard::GPU_NAMESPACE {

struct StoreBox {
  static constexpr int rows = 16, row_bytes = 128;
  alignas(1024) std::byte bytes[rows * row_bytes];

  template <class C>
  static constexpr int cols = row_bytes / static_cast<int>(sizeof(C));
};

// Fills a box, swizzled, with the warp's sums of as many mma tiles as it holds.
template <class C>
__device__ void fill_box(std::byte* box, const float* sums);

// Four tiles of f32. Lanes of odd rows write two tiles further
// on than those of even rows: the swizzle moves chunks of 16 bytes, a quad of lanes writes two of them,
// and rows 2r and 2r + 1 would else meet in the same banks.
template <>
__device__ inline void fill_box<float>(std::byte* box, const float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, pair = lane % 4;
  const bool odd = row % 2 != 0;
  std::byte* const own = box + row * StoreBox::row_bytes + pair % 2 * 8;
  const int chunk = pair / 2 ^ row ^ (odd ? 4 : 0);
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {
    const float* const even_rows = sums + 4 * tile;
    const float* const odd_rows = sums + 4 * (tile ^ 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * half;
      store_shared(
          reinterpret_cast<float2*>(own + (chunk ^ 2 * tile) * 16 + half * 8 * StoreBox::row_bytes),
          float2{odd ? odd_rows[i] : even_rows[i], odd ? odd_rows[i + 1] : even_rows[i + 1]});
    }
  }
}

// Eight tiles, rounded to bf16.
template <>
__device__ inline void fill_box<bf16>(std::byte* box, const float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane % 16;
#pragma unroll
  for (int tile = 0; tile < 8; tile += 2) {
    const float* const s = sums + 4 * tile;
    const int chunk = (tile + lane / 16) ^ (row % 8);
    stmatrix(box + row * StoreBox::row_bytes + chunk * 16,
             {pack_bf16x2(s[0], s[1]), pack_bf16x2(s[2], s[3]), pack_bf16x2(s[4], s[5]),
              pack_bf16x2(s[6], s[7])});
  }
}

// Adds the bias of columns [col, col + cols) to the warp's sums of them, where c has n.
template <int cols>
__device__ void add_bias(float (&sums)[cols / 2], const bf16* bias, int col, int n) {
  const int first = col + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int tile = 0; tile < cols / 8; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = first + 8 * tile + i;
      const float value = at < n ? widen(load_readonly(bias + at)) : 0;
      sums[4 * tile + i] += value;
      sums[4 * tile + 2 + i] += value;
    }
  }
}

// A warp's boxes, which it goes through in turn.
template <int boxes>
struct BoxRing {
  StoreBox (&box)[boxes];
  int next = 0;

  __device__ std::byte* take() {
    std::byte* const bytes = box[next].bytes;
    next = (next + 1) % boxes;
    return bytes;
  }
};

// A warp's rows of a tile: where they begin in c, seen as a stack of matrices, and whether they are the
// product's to write.
struct StoreRows {
  int col, row, matrix;
  bool inside;
};

// Writes the warp's [16, n] sums, in the layout of wgmma, by way of its boxes. The copies are under way at
// return; wait_for_boxes comes before the block ends. The sums stay as they are: were they changed, in a
// branch even, the compiler would fence the next tile's wgmma.
template <class C, int n, int boxes>
__device__ void store_rows(const TensorMap& c, const Epilogue<bf16>& out, int columns,
                           BoxRing<boxes>& ring, const float (&sums)[n / 2], const StoreRows& at) {
  constexpr int cols = StoreBox::cols<C>;
  const bool leads = elect_one();
#pragma unroll
  for (int i = 0; i < n / cols; ++i) {
    const int col = at.col + i * cols;
    float own[cols / 2];
#pragma unroll
    for (int j = 0; j < cols / 2; ++j) own[j] = sums[i * cols / 2 + j];
    if (out.bias != nullptr) add_bias<cols>(own, out.bias, col, columns);
    std::byte* const bytes = ring.take();
    if (leads) bulk_wait_read<boxes - 1>();
    __syncwarp();
    fill_box<C>(bytes, own);
    fence_proxy_async();
    __syncwarp();
    if (leads) {
      if (at.inside && out.add) tma_add(c, bytes, col, at.row, at.matrix);
      if (at.inside && !out.add) tma_store(c, bytes, col, at.row, at.matrix);
      bulk_commit();  // an empty group where nothing is to be written: boxes are counted by groups
    }
  }
}

__device__ inline void wait_for_boxes() {
  if (elect_one()) bulk_wait_read<0>();
}

// The boxes of a tile [rows, n] of c, of f32, on their way to the L2 before the tile is added to them: by
// turns in the last steps of k, so that they come in time and do not crowd out operands.
template <int rows, int n>
struct BoxesAhead {
  static constexpr int cols = StoreBox::cols<float>, in_row = n / cols;
  static constexpr int count = rows / StoreBox::rows * in_row;
  static constexpr int lead = 8;  // steps
  int next = 0;

  __device__ void fetch(const TensorMap& c, const Work& work, int step, int steps) {
    const int first = steps > lead ? steps - lead : 0;
    if (step < first) return;
    const int until = count * (step - first + 1) / (steps - first);
    for (; next < until; ++next) {
      const int row = work.row + next / in_row * StoreBox::rows;
      if (row < work.m) {
        tma_prefetch_box(c, work.col + next % in_row * cols, work.first_row + row, work.c_matrix);
      }
    }
  }
};

// As the copy engine sees c, whose rows begin on 16 bytes.
inline TensorMap store_map(const Tensor& c) {
  const int size = static_cast<int>(size_of(c.dtype()));
  return make_tensor_map({.data = c.raw(),
                          .cols = c.dim(-1),
                          .rows = c.dim(-2),
                          .matrices = c.rank() == 3 ? c.dim(0) : 1,
                          .box_cols = StoreBox::row_bytes / size,
                          .box_rows = StoreBox::rows,
                          .dtype = c.dtype()});
}

}  // namespace orchard::GPU_NAMESPACE
