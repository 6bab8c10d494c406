// Packing works on 32-bit words: an f32, or two bf16 that follow each other along k. Where k runs
// along a row of the source, packing is a transpose of words, done in 4 x 4 blocks of 128-bit
// vectors, which every instruction set has; where k runs down, rows are copied, or two rows of bf16
// interleaved.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm/pack_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <hwy/cache_control.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/simd-inl.h"
#include "kernels/gemm/onednn_tiles.h"
#include "kernels/gemm/pack_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

using Word = std::uint32_t;
// Word c of row r, from rows that lie stride_bytes apart (those of bf16 need not start on a word),
// to row c of the destination.
HWY_INLINE void transpose_word(const std::byte* source, std::int64_t stride_bytes, std::int64_t r,
                               std::int64_t c, Word* destination, std::int64_t stride) {
  std::memcpy(destination + c * stride + r, source + r * stride_bytes + c * 4, sizeof(Word));
}

// A block of 4 x 4 words.
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void transpose_block(const std::byte* source, std::int64_t stride_bytes,
                                Word* destination, std::int64_t stride) {
  for (int i = 0; i < 16; ++i)
    transpose_word(source, stride_bytes, i / 4, i % 4, destination, stride);
}
#else
HWY_INLINE void transpose_block(const std::byte* source, std::int64_t stride_bytes,
                                Word* destination, std::int64_t stride) {
  const hn::FixedTag<Word, 4> d;
  const hn::FixedTag<std::uint64_t, 2> d64;
  const hn::FixedTag<std::uint8_t, 16> d8;
  const auto row = [&](int r) HWY_ATTR {
    return hn::BitCast(
        d, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(source + r * stride_bytes)));
  };
  const auto v0 = row(0), v1 = row(1), v2 = row(2), v3 = row(3);
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, v0, v1));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, v2, v3));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, v0, v1));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, v2, v3));
  const auto put = [&](int c, auto v)
                       HWY_ATTR { hn::StoreU(hn::BitCast(d, v), d, destination + c * stride); };
  put(0, hn::InterleaveLower(d64, low01, low23));
  put(1, hn::InterleaveUpper(d64, low01, low23));
  put(2, hn::InterleaveLower(d64, high01, high23));
  put(3, hn::InterleaveUpper(d64, high01, high23));
}
#endif

// Words [rows, cols] at `source`, whose rows lie `stride_bytes` apart, to [cols, rows] at
// `destination`, whose rows lie `stride` words apart. Columns are taken sixteen at a time, so that
// what is written stays in the L1 cache until its lines are full.
void transpose_words(const std::byte* source, std::int64_t stride_bytes, std::int64_t rows,
                     std::int64_t cols, Word* destination, std::int64_t stride) {
  for (std::int64_t first = 0; first < cols; first += 16) {
    const std::int64_t end = std::min(first + 16, cols);
    const std::int64_t whole = first + (end - first) / 4 * 4;
    for (std::int64_t r = 0; r < rows; r += 4) {
      const bool whole_rows = r + 4 <= rows;
      for (std::int64_t c = first; whole_rows && c < whole; c += 4) {
        transpose_block(source + r * stride_bytes + c * 4, stride_bytes,
                        destination + c * stride + r, stride);
      }
      for (std::int64_t c = whole_rows ? whole : first; c < end; ++c) {
        for (std::int64_t i = r; i < std::min(r + 4, rows); ++i)
          transpose_word(source, stride_bytes, i, c, destination, stride);
      }
    }
  }
}

// Words of `count` columns from one row of f32, or from two rows of bf16 (`next` null: zeros).
HWY_INLINE void words_of_rows(const float* row, const float*, std::int64_t count, Word* words) {
  std::memcpy(words, row, static_cast<std::size_t>(count) * sizeof(Word));
}

HWY_INLINE void words_of_rows(const bf16* row, const bf16* next, std::int64_t count, Word* words) {
  const hn::ScalableTag<Word> d;
  const hn::Rebind<std::uint16_t, decltype(d)> d16;
  const auto* const low = reinterpret_cast<const std::uint16_t*>(row);
  const auto* const high = reinterpret_cast<const std::uint16_t*>(next);
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + step <= count; i += step) {
    auto v = hn::PromoteTo(d, hn::LoadU(d16, low + i));
    if (high) v = hn::Or(v, hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(d16, high + i))));
    hn::StoreU(v, d, words + i);
  }
  for (; i < count; ++i) words[i] = low[i] | (high ? Word{high[i]} << 16 : 0);
}

// Rows are far apart, where no hardware prefetcher follows: they are asked for so many rows ahead.
constexpr std::int64_t rows_ahead = 16;

template <class T>
HWY_INLINE void prefetch_row(const T* row, std::int64_t count) {
  constexpr std::int64_t line = 64 / sizeof(T);
  for (std::int64_t i = 0; i < count; i += line) hwy::Prefetch(row + i);
}

template <class T>
constexpr std::int64_t per_word = sizeof(Word) / sizeof(T);

template <class T>
void pack_block_of(Transpose transpose, Rows matrix, std::int64_t k, std::int64_t padded_k,
                   std::int64_t n, std::int64_t block, Word* packed) {
  const std::int64_t first = block * block_cols, cols = std::min(block_cols, n - first);
  const std::int64_t words = packed_words(padded_k, dtype_of<T>);
  const std::int64_t full = k / per_word<T>;  // words wholly inside k
  const auto zero_rows = [&](std::int64_t begin, std::int64_t end) {
    std::fill(packed + begin * block_cols, packed + end * block_cols, Word{0});
  };
  if (cols < block_cols) zero_rows(0, words);
  if (transpose == Transpose::yes) {
    const T* const rows = reinterpret_cast<const T*>(matrix.data) + first * matrix.stride;
    transpose_words(reinterpret_cast<const std::byte*>(rows),
                    matrix.stride * static_cast<std::int64_t>(sizeof(T)), cols, full, packed,
                    block_cols);
    zero_rows(full, words);
    if (full * per_word<T> < k) {  // the last word holds one bf16 and a zero
      for (std::int64_t c = 0; c < cols; ++c) {
        std::memcpy(packed + full * block_cols + c, rows + c * matrix.stride + k - 1, sizeof(T));
      }
    }
    return;
  }
  static constexpr T no_row[block_cols] = {};
  const auto row_at = [&](std::int64_t i) {
    const auto* const row = reinterpret_cast<const T*>(matrix.at(i, dtype_of<T>));
    return row ? row + first : no_row;
  };
  std::int64_t word = 0;
  for (; word * per_word<T> < k; ++word) {
    const std::int64_t row = word * per_word<T>, next = row + 1;
    for (std::int64_t i = row + rows_ahead; i < row + rows_ahead + per_word<T>; ++i) {
      // An index ends with k; what else follows there is the next piece of a longer sum.
      if (!matrix.source || i < k) prefetch_row(row_at(i), cols);
    }
    words_of_rows(row_at(row), next < k ? row_at(next) : nullptr, cols, packed + word * block_cols);
  }
  zero_rows(word, words);
}

template <class T>
void transpose_columns_of(const T* matrix, std::int64_t k, std::int64_t m, std::int64_t first,
                          std::int64_t count, std::int64_t padded_k, Word* rows) {
  constexpr std::int64_t batch = 32;  // words of k gathered before they are transposed
  alignas(64) Word gathered[batch * tile_rows];
  const std::int64_t stride = padded_k / per_word<T>;
  for (std::int64_t begin = 0; begin < stride; begin += batch) {
    const std::int64_t words = std::min(batch, stride - begin);
    for (std::int64_t w = 0; w < words; ++w) {
      const std::int64_t row = (begin + w) * per_word<T>;
      Word* const out = gathered + w * tile_rows;
      const T* const source = matrix + row * m + first;
      if (row < k) {
        prefetch_row(source + rows_ahead * m, count);
        if (per_word < T >> 1) prefetch_row(source + (rows_ahead + 1) * m, count);
        words_of_rows(source, row + 1 < k ? source + m : nullptr, count, out);
      } else {
        std::fill(out, out + count, Word{0});
      }
    }
    transpose_words(reinterpret_cast<const std::byte*>(gathered), tile_rows * sizeof(Word), words,
                    count, rows + begin, stride);
  }
}

void pack_block(DType dtype, Transpose transpose, Rows matrix, std::int64_t k,
                std::int64_t padded_k, std::int64_t n, std::int64_t block, std::byte* packed) {
  auto* const words = reinterpret_cast<Word*>(packed);
  if (dtype == DType::f32) {
    pack_block_of<float>(transpose, matrix, k, padded_k, n, block, words);
  } else {
    pack_block_of<bf16>(transpose, matrix, k, padded_k, n, block, words);
  }
}

void transpose_columns(DType dtype, const std::byte* matrix, std::int64_t k, std::int64_t m,
                       std::int64_t first, std::int64_t count, std::int64_t padded_k,
                       std::byte* rows) {
  auto* const words = reinterpret_cast<Word*>(rows);
  if (dtype == DType::f32) {
    transpose_columns_of(reinterpret_cast<const float*>(matrix), k, m, first, count, padded_k,
                         words);
  } else {
    transpose_columns_of(reinterpret_cast<const bf16*>(matrix), k, m, first, count, padded_k,
                         words);
  }
}

template <class From, class To>
void convert(const From* source, To* destination, std::int64_t count) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t n)
                             HWY_ATTR { store(load(source + i, n), destination + i, n); });
}

void widen(const bf16* source, float* destination, std::int64_t count) {
  convert(source, destination, count);
}

void narrow(const float* source, bf16* destination, std::int64_t count) {
  convert(source, destination, count);
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(pack_block);
HWY_EXPORT(transpose_columns);
HWY_EXPORT(widen);
HWY_EXPORT(narrow);

void pack_block(DType dtype, Transpose transpose, Rows matrix, std::int64_t k,
                std::int64_t padded_k, std::int64_t n, std::int64_t block, std::byte* packed) {
  HWY_DYNAMIC_DISPATCH(pack_block)(dtype, transpose, matrix, k, padded_k, n, block, packed);
}

void transpose_columns(DType dtype, const std::byte* matrix, std::int64_t k, std::int64_t m,
                       std::int64_t first, std::int64_t count, std::int64_t padded_k,
                       std::byte* rows) {
  HWY_DYNAMIC_DISPATCH(transpose_columns)(dtype, matrix, k, m, first, count, padded_k, rows);
}

void copy_rows(DType dtype, const Rows& rows, std::int64_t first, std::int64_t count,
               std::int64_t cols, std::byte* to) {
  const std::size_t bytes = static_cast<std::size_t>(cols) * size_of(dtype);
  for (std::int64_t i = first; i < first + count; ++i, to += bytes) {
    if (const std::byte* const row = rows.at(i, dtype)) {
      std::memcpy(to, row, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
}

void copy_rows_to_f32(DType dtype, const Rows& rows, std::int64_t first, std::int64_t count,
                      std::int64_t cols, float* to) {
  if (dtype == DType::f32) {
    return copy_rows(dtype, rows, first, count, cols, reinterpret_cast<std::byte*>(to));
  }
  for (std::int64_t i = first; i < first + count; ++i, to += cols) {
    if (const std::byte* const row = rows.at(i, dtype)) {
      widen(reinterpret_cast<const bf16*>(row), to, cols);
    } else {
      std::fill_n(to, cols, 0.0f);
    }
  }
}

void widen(const bf16* source, float* destination, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(widen)(source, destination, count);
}

void narrow(const float* source, bf16* destination, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(narrow)(source, destination, count);
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
