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

// A picture row cut into strips for different warps, of as even a length as they have: nine pixels and the
// one on either side of them are asked for 1.2 times.
struct Strips {
  int count, length;
  explicit Strips(int width) : count((width + 9) / 10), length((width + count - 1) / count) {}
};

// The pixels (i - 1, j), (i, j) and (i + 1, j) of one image, zeros outside it: one column of a 3x3
// window.
template <class T, int n>
struct Column {
  Piece<T, n> row[3];
};

// Where the columns of row i lie. Rows and columns outside the image are read at its edge and then
// replaced by zeros: loads without a branch stay in flight together.
template <class T>
struct ColumnsOfRow {
  const T* rows[3];
  bool has_row[3];
  int width;
  std::int64_t channels;

  // `image` is the first pixel of the image, in the thread's channels.
  __device__ ColumnsOfRow(const T* image, const Picture& picture, int i)
      : width(picture.width), channels(picture.channels) {
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      const int row = i + r - 1, last = picture.height - 1;
      has_row[r] = row >= 0 && row <= last;
      const std::int64_t clamped = row < 0 ? 0 : row > last ? last : row;
      rows[r] = image + clamped * width * channels;
    }
  }

  template <int n>
  __device__ Column<T, n> load_raw(int j) const {
    const std::int64_t at = (j < 0 ? 0 : j < width ? j : width - 1) * channels;
    Column<T, n> column;
#pragma unroll
    for (int r = 0; r < 3; ++r) column.row[r] = load_piece<n>(rows[r] + at);
    return column;
  }
  template <int n>
  __device__ Values<n> values(const Column<T, n>& raw, int r, int j) const {
    return values_of(has_row[r] && j >= 0 && j < width ? raw.row[r] : Piece<T, n>{});
  }
};

}  // namespace orchard::GPU_NAMESPACE
