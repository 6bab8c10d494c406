#include "parallel/slice.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {
namespace {

SliceIndex checked_index(const Shape& shape, const Slice& slice, std::size_t whole,
                         std::size_t local) {
  const SliceIndex index(shape, slice);
  require(static_cast<std::int64_t>(whole) == shape.numel() &&
              static_cast<std::int64_t>(local) == index.elements(),
          "{} of {} elements: not those of {} and of a slice of {}", local, whole, shape,
          index.elements());
  return index;
}

}  // namespace

SliceIndex::SliceIndex(const Shape& shape, const Slice& slice) {
  const std::int64_t extent = shape[slice.dim];
  require(slice.begin >= 0 && slice.count >= 0 && slice.begin + slice.count <= extent,
          "indices [{}, {}) of dimension {} lie outside {}", slice.begin, slice.begin + slice.count,
          slice.dim, shape);
  std::int64_t inner = 1;
  for (int d = 0; d < shape.rank(); ++d) (d < slice.dim ? outer_ : inner) *= shape[d];
  inner /= std::max<std::int64_t>(extent, 1);
  run_ = slice.count * inner;
  global_run_ = extent * inner;
  begin_ = slice.begin * inner;
  if (run_ == 0) outer_ = 0;
}

Shape shape_of(const Slice& slice, const Shape& whole) {
  return whole.with(slice.dim, slice.count);
}

void cut(const Shape& shape, const Slice& slice, std::span<const float> whole,
         std::span<float> local) {
  checked_index(shape, slice, whole.size(), local.size())
      .for_each_run([&](std::int64_t from, std::int64_t to, std::int64_t n) {
        std::copy_n(whole.begin() + from, n, local.begin() + to);
      });
}

void paste(const Shape& shape, const Slice& slice, std::span<const float> local,
           std::span<float> whole) {
  checked_index(shape, slice, whole.size(), local.size())
      .for_each_run([&](std::int64_t to, std::int64_t from, std::int64_t n) {
        std::copy_n(local.begin() + from, n, whole.begin() + to);
      });
}

}  // namespace orchard
