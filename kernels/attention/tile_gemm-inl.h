// Matrix products of tiles that lie in a core's cache, and the packing of such tiles. Include
// inside the target's translation unit, after hwy/highway.h.
//
// A product of 64×64×64 is over in ten microseconds, less than a GEMM library needs to choose its
// kernel. So here is the inner loop of a GEMM alone: a block of C (rows × vectors) stays in
// registers while one column of A, broadcast, meets one row of B. Four rows by four vectors make 16
// independent sums: enough to hide the latency of two multiply-adds a cycle, with 8 loads to 16
// multiply-adds. Targets with 16 registers take fewer vectors.
#if defined(ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_
#undef ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_
#else
#define ORCHARD_KERNELS_ATTENTION_TILE_GEMM_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// What the tiles are made of. A word is an f32, or two bf16 that follow each other along the depth
// (the even one in the lower half). Each kind says how a word of the left meets a word of the right.
struct FloatProduct {
  using Element = float;
  using Word = float;
  static constexpr int block_vectors = few_registers ? 3 : 4;
  static HWY_INLINE Vector add(Vector sum, Vector a, Vector b) { return hn::MulAdd(a, b, sum); }
};

// bf16 on every target: both halves are widened.
struct PairProduct {
  using Element = bf16;
  using Word = std::uint32_t;
  static constexpr int block_vectors = few_registers ? 2 : 4;
  static HWY_INLINE Vector add(Vector sum, Vector a, Vector b) {
    return hn::MulAdd(upper(a), upper(b), hn::MulAdd(lower(a), lower(b), sum));
  }

 private:
  using Bits = hn::Rebind<Word, Floats>;
  static HWY_INLINE Vector upper(Vector pairs) {
    return hn::BitCast(Floats(), hn::And(hn::BitCast(Bits(), pairs), hn::Set(Bits(), 0xffff0000u)));
  }
  static HWY_INLINE Vector lower(Vector pairs) {
    return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::BitCast(Bits(), pairs)));
  }
};

// bf16 by AVX512-BF16: twice the rate of fp32.
#if ORCHARD_ASSEMBLES_AVX512_BF16
struct PairInstruction {
  using Element = bf16;
  using Word = std::uint32_t;
  static constexpr int block_vectors = 4;
  static HWY_INLINE Vector add(Vector sum, Vector a, Vector b) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }
};
#endif

// Calls body(product) with the quickest kind that this CPU has for `dtype`.
template <class Body>
HWY_INLINE void with_product(DType dtype, const Body& body) {
  if (dtype == DType::f32) return body(FloatProduct());
#if ORCHARD_ASSEMBLES_AVX512_BF16
  if (has_avx512_bf16()) return body(PairInstruction());
#endif
  body(PairProduct());
}

template <class Word>
constexpr std::int64_t elements_per_word = std::is_same_v<Word, float> ? 1 : 2;

template <class Word>
constexpr std::int64_t words_for(std::int64_t elements) {
  return (elements + elements_per_word<Word> - 1) / elements_per_word<Word>;
}

HWY_INLINE Vector load_words(const float* p) {
  return load(p);
}
HWY_INLINE Vector load_words(const std::uint32_t* p) {
  return hn::BitCast(Floats(), hn::LoadU(hn::Rebind<std::uint32_t, Floats>(), p));
}
HWY_INLINE Vector broadcast_word(float word) {
  return set(word);
}
HWY_INLINE Vector broadcast_word(std::uint32_t word) {
  return hn::BitCast(Floats(), hn::Set(hn::Rebind<std::uint32_t, Floats>(), word));
}

// The left operand, word (row, depth) at data[row·row_stride + depth·depth_stride]: a tile or its
// transpose.
template <class Word>
struct LeftTile {
  const Word* data;
  std::int64_t row_stride;
  std::int64_t depth_stride;
};

enum class Store { overwrite, add };

constexpr int block_rows = 4;

HWY_INLINE std::int64_t vectors_for(std::int64_t elements) {
  return (elements + lanes() - 1) / lanes();
}
HWY_INLINE std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <class Product, Store store_mode, int rows, int vectors, class Word>
HWY_INLINE void block_gemm(std::int64_t depth, LeftTile<Word> a, const Word* HWY_RESTRICT b,
                           std::int64_t b_stride, float* HWY_RESTRICT c, std::int64_t c_stride) {
  const std::int64_t n = lanes();
  Vector sums[rows][vectors];
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] = store_mode == Store::add ? load(c + r * c_stride + v * n) : zero();
    }
  }
  const Word* left = a.data;
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector right[vectors];
    for (int v = 0; v < vectors; ++v) right[v] = load_words(b + v * n);
    for (int r = 0; r < rows; ++r) {
      const Vector broadcast = broadcast_word(left[r * a.row_stride]);
      for (int v = 0; v < vectors; ++v) {
        sums[r][v] = Product::add(sums[r][v], broadcast, right[v]);
      }
    }
    left += a.depth_stride;
    b += b_stride;
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) store(sums[r][v], c + r * c_stride + v * n);
  }
}

template <class Product, Store store_mode, int vectors, class Word>
HWY_NOINLINE void panel_gemm(std::int64_t rows, std::int64_t depth, LeftTile<Word> a, const Word* b,
                             std::int64_t b_stride, float* c, std::int64_t c_stride) {
  std::int64_t r = 0;
  for (; r + block_rows <= rows; r += block_rows) {
    block_gemm<Product, store_mode, block_rows, vectors>(depth, a, b, b_stride, c, c_stride);
    a.data += block_rows * a.row_stride;
    c += block_rows * c_stride;
  }
  for (; r < rows; ++r) {
    block_gemm<Product, store_mode, 1, vectors>(depth, a, b, b_stride, c, c_stride);
    a.data += a.row_stride;
    c += c_stride;
  }
}

// C = A·B or C += A·B, for C of `rows` rows and `vectors` vectors of columns; `depth` in words. A's
// depth is summed in order, for each element of C alone: how C is cut does not change a bit.
template <class Product, Store store_mode, class Word>
HWY_INLINE void tile_gemm(std::int64_t rows, std::int64_t vectors, std::int64_t depth,
                          LeftTile<Word> a, const Word* b, std::int64_t b_stride, float* c,
                          std::int64_t c_stride) {
  constexpr int widest = Product::block_vectors;
  // Panels of nearly equal width: five vectors are cut 3 + 2, not 4 + 1.
  const std::int64_t panels = (vectors + widest - 1) / widest;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t begin = vectors * panel / panels, end = vectors * (panel + 1) / panels;
    const Word* const right = b + begin * lanes();
    float* const out = c + begin * lanes();
    const auto multiply = [&]<int width>() {
      panel_gemm<Product, store_mode, std::min(width, widest)>(rows, depth, a, right, b_stride, out,
                                                               c_stride);
    };
    switch (end - begin) {
      case 4:
        multiply.template operator()<4>();
        break;
      case 3:
        multiply.template operator()<3>();
        break;
      case 2:
        multiply.template operator()<2>();
        break;
      default:
        multiply.template operator()<1>();
    }
  }
}

// Rows of `cols` elements, `source_stride` apart, into rows of words, `padded` words apart. A last
// bf16 without a partner meets a zero.
template <class T, class Word>
HWY_INLINE void pack_rows(const T* source, std::int64_t source_stride, std::int64_t rows,
                          std::int64_t cols, Word* tile, std::int64_t padded) {
  for (std::int64_t r = 0; r < rows; ++r) {
    if (cols % elements_per_word<Word>) tile[cols / elements_per_word<Word>] = 0;
    std::memcpy(tile, source, static_cast<std::size_t>(cols) * sizeof(T));
    source += source_stride;
    tile += padded;
  }
}

// The same rows where they run along the depth, for the right operand: rows of whole vectors of
// words. The padding is zero, and so is the partner of a last row of bf16.
HWY_INLINE void pack_depth(const float* source, std::int64_t source_stride, std::int64_t rows,
                           std::int64_t cols, float* tile, std::int64_t padded) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* const row = source + r * source_stride;
    float* const words = tile + r * padded;
    for_each_vector(
        cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR { store(load(row + i, n), words + i); });
  }
}

HWY_INLINE void pack_depth(const bf16* source, std::int64_t source_stride, std::int64_t rows,
                           std::int64_t cols, std::uint32_t* tile, std::int64_t padded) {
  const hn::Rebind<std::uint32_t, Floats> d;
  for (std::int64_t r = 0; r < rows; r += 2) {
    const bf16* const row = source + r * source_stride;
    std::uint32_t* const words = tile + r / 2 * padded;
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      auto pairs = hn::ShiftRight<16>(hn::BitCast(d, load(row + i, n)));
      if (r + 1 < rows) pairs = hn::Or(pairs, hn::BitCast(d, load(row + source_stride + i, n)));
      hn::StoreU(pairs, d, words + i);
    });
  }
}

// Turns a block of rows × columns around: out[c, r] = in[r, c].
#if HWY_TARGET == HWY_SCALAR
constexpr std::int64_t turn = 1;
template <class Word>
HWY_INLINE void turn_block(const Word* in, std::int64_t, Word* out, std::int64_t) {
  *out = *in;
}
#else
constexpr std::int64_t turn = 4;
template <class Word>
HWY_INLINE void turn_block(const Word* in, std::int64_t in_stride, Word* out,
                           std::int64_t out_stride) {
  const hn::FixedTag<Word, turn> d;
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
// `tile` and of `out` are taken up to whole vectors, at least to an even number: zeros there.
template <class Word>
HWY_INLINE void transpose_tile(Word* tile, std::int64_t rows, std::int64_t cols,
                               std::int64_t padded, Word* out, std::int64_t out_stride) {
  const std::int64_t whole_rows = vectors_for(round_up(rows, 2)) * lanes();
  std::fill(tile + rows * padded, tile + whole_rows * padded, Word{0});
  for (std::int64_t c = 0; c < cols; c += turn) {
    for (std::int64_t r = 0; r < whole_rows; r += turn) {
      turn_block(tile + r * padded + c, padded, out + c * out_stride + r, out_stride);
    }
  }
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
