// How the pixels of channels-last pictures are dealt to threads.
#pragma once

#include <cstdint>

#include "kernels/core/shape.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/pieces.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr int taps = 9;

struct Picture {
  std::int64_t images;
  int height, width;
  std::int64_t channels;
  explicit Picture(const Shape& s)
      : images(s[0]),
        height(static_cast<int>(s[1])),
        width(static_cast<int>(s[2])),
        channels(s[3]) {}
};

// The pixels (i - 1, j), (i, j) and (i + 1, j) of one image, zeros outside it: one column of a 3x3
// window.
template <class T, int n>
struct Column {
  Piece<T, n> row[3];
};
template <int n, class T>
__device__ Column<T, n> load_column(const T* image, const Picture& picture, int i, int j) {
  Column<T, n> column;
#pragma unroll
  for (int r = 0; r < 3; ++r) {
    const int row = i + r - 1;
    const bool inside = row >= 0 && row < picture.height && j >= 0 && j < picture.width;
    column.row[r] =
        inside ? load_piece<n>(image + (static_cast<std::int64_t>(row) * picture.width + j) *
                                           picture.channels)
               : Piece<T, n>{};
  }
  return column;
}

}  // namespace orchard::GPU_NAMESPACE
