// Matrix products of tiles that lie in a core's cache, and the packing of such tiles. Include
// inside the target's translation unit, after hwy/highway.h.
//
// A product of 64×64×64 is over in ten microseconds, less than a GEMM library needs to choose its
// kernel. So here is the inner loop of a GEMM alone: a block of C (rows × vectors) stays in
// registers while one column of A, broadcast, meets one row of B. Four rows by four vectors make 16
// independent sums: enough to hide the latency of two multiply-adds a cycle, with 8 loads to 16
// multiply-adds. Targets with 16 registers take four rows by three vectors.
#if defined(ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_
#undef ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_
#else
#define ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// The left operand, element (row, depth) at data[row·row_stride + depth·depth_stride]: a tile or
// its transpose.
struct LeftTile {
  const float* data;
  std::int64_t row_stride;
  std::int64_t depth_stride;
};

enum class Store { overwrite, add };

constexpr int block_rows = 4;
#if HWY_ARCH_X86 && HWY_TARGET != HWY_AVX3 && HWY_TARGET != HWY_AVX3_DL
constexpr int block_vectors = 3;
#else
constexpr int block_vectors = 4;
#endif

HWY_INLINE std::int64_t vectors_for(std::int64_t elements) {
  return (elements + lanes() - 1) / lanes();
}
HWY_INLINE std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <Store store_mode, int rows, int vectors>
HWY_INLINE void block_gemm(std::int64_t depth, LeftTile a, const float* HWY_RESTRICT b,
                           std::int64_t b_stride, float* HWY_RESTRICT c, std::int64_t c_stride) {
  const std::int64_t n = lanes();
  Vector sums[rows][vectors];
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] = store_mode == Store::add ? load(c + r * c_stride + v * n) : zero();
    }
  }
  const float* left = a.data;
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector right[vectors];
    for (int v = 0; v < vectors; ++v) right[v] = load(b + v * n);
    for (int r = 0; r < rows; ++r) {
      const Vector broadcast = set(left[r * a.row_stride]);
      for (int v = 0; v < vectors; ++v) sums[r][v] = hn::MulAdd(broadcast, right[v], sums[r][v]);
    }
    left += a.depth_stride;
    b += b_stride;
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) store(sums[r][v], c + r * c_stride + v * n);
  }
}

template <Store store_mode, int vectors>
HWY_NOINLINE void panel_gemm(std::int64_t rows, std::int64_t depth, LeftTile a, const float* b,
                             std::int64_t b_stride, float* c, std::int64_t c_stride) {
  std::int64_t r = 0;
  for (; r + block_rows <= rows; r += block_rows) {
    block_gemm<store_mode, block_rows, vectors>(depth, a, b, b_stride, c, c_stride);
    a.data += block_rows * a.row_stride;
    c += block_rows * c_stride;
  }
  for (; r < rows; ++r) {
    block_gemm<store_mode, 1, vectors>(depth, a, b, b_stride, c, c_stride);
    a.data += a.row_stride;
    c += c_stride;
  }
}

// C = A·B or C += A·B, for C of `rows` rows and `vectors` vectors of columns. A's depth is summed
// in order, for each element of C alone: how C is cut does not change a bit.
template <Store store_mode>
HWY_INLINE void tile_gemm(std::int64_t rows, std::int64_t vectors, std::int64_t depth, LeftTile a,
                          const float* b, std::int64_t b_stride, float* c, std::int64_t c_stride) {
  // Panels of nearly equal width: five vectors are cut 3 + 2, not 4 + 1.
  const std::int64_t panels = (vectors + block_vectors - 1) / block_vectors;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t begin = vectors * panel / panels, end = vectors * (panel + 1) / panels;
    const float* const right = b + begin * lanes();
    float* const out = c + begin * lanes();
    switch (end - begin) {
      case 4:
        panel_gemm<store_mode, block_vectors>(rows, depth, a, right, b_stride, out, c_stride);
        break;
      case 3:
        panel_gemm<store_mode, 3>(rows, depth, a, right, b_stride, out, c_stride);
        break;
      case 2:
        panel_gemm<store_mode, 2>(rows, depth, a, right, b_stride, out, c_stride);
        break;
      default:
        panel_gemm<store_mode, 1>(rows, depth, a, right, b_stride, out, c_stride);
    }
  }
}

// Rows of `cols` elements, `source_stride` apart, widened to fp32 and multiplied by `factor`, into
// rows of whole vectors, `padded` floats apart. The padding is zero.
template <class T>
HWY_INLINE void pack_rows(const T* source, std::int64_t source_stride, std::int64_t rows,
                          std::int64_t cols, float factor, float* tile, std::int64_t padded) {
  const Vector scale = set(factor);
  for (std::int64_t r = 0; r < rows; ++r) {
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n)
                              HWY_ATTR { store(hn::Mul(load(source + i, n), scale), tile + i); });
    source += source_stride;
    tile += padded;
  }
}

// Turns a block of rows × columns around: out[c, r] = in[r, c].
#if HWY_TARGET == HWY_SCALAR
constexpr std::int64_t turn = 1;
HWY_INLINE void turn_block(const float* in, std::int64_t, float* out, std::int64_t) {
  *out = *in;
}
#else
constexpr std::int64_t turn = 4;
HWY_INLINE void turn_block(const float* in, std::int64_t in_stride, float* out,
                           std::int64_t out_stride) {
  const hn::FixedTag<float, turn> d;
  const hn::Repartition<double, decltype(d)> pairs;
  const auto row0 = hn::LoadU(d, in), row1 = hn::LoadU(d, in + in_stride);
  const auto row2 = hn::LoadU(d, in + 2 * in_stride), row3 = hn::LoadU(d, in + 3 * in_stride);
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, row0, row1));
  const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, row2, row3));
  const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, row0, row1));
  const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, row2, row3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)), d, out);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)), d, out + out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23)), d, out + 2 * out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23)), d, out + 3 * out_stride);
}
#endif

// The first `cols` columns of a packed tile as rows of `out`, `out_stride` apart. The rows of
// `tile` and of `out` are taken up to whole vectors: zeros there.
HWY_INLINE void transpose_tile(float* tile, std::int64_t rows, std::int64_t cols,
                               std::int64_t padded, float* out, std::int64_t out_stride) {
  const std::int64_t whole_rows = vectors_for(rows) * lanes();
  std::fill(tile + rows * padded, tile + whole_rows * padded, 0.0f);
  for (std::int64_t c = 0; c < cols; c += turn) {
    for (std::int64_t r = 0; r < whole_rows; r += turn) {
      turn_block(tile + r * padded + c, padded, out + c * out_stride + r, out_stride);
    }
  }
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
