// The part of a tensor that one rank holds: a range of one dimension, the others whole.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/shape.h"

namespace orchard {

struct Slice {
  int dim = 0;
  std::int64_t begin = 0, count = 0;  // indices [begin, begin + count) of dimension `dim`

  bool operator==(const Slice&) const = default;
};

// A whole tensor as its own slice.
inline Slice whole(const Shape& shape) {
  return {.dim = 0, .begin = 0, .count = shape[0]};
}

// Row-major positions of a slice's elements in the tensor that it is cut from.
class SliceIndex {
 public:
  // Throws Error where the slice does not lie inside the shape.
  SliceIndex(const Shape& shape, const Slice& slice);

  std::int64_t elements() const { return outer_ * run_; }
  std::int64_t to_global(std::int64_t local) const {
    return local / run_ * global_run_ + begin_ + local % run_;
  }

  // Calls f(global, local, elements) for every run that is contiguous in both, in rising order.
  template <class F>
  void for_each_run(F f) const {
    for (std::int64_t i = 0; i < outer_; ++i) f(i * global_run_ + begin_, i * run_, run_);
  }

 private:
  std::int64_t outer_ = 1;       // runs
  std::int64_t run_ = 1;         // elements of one
  std::int64_t global_run_ = 1;  // elements from one run to the next in the whole tensor
  std::int64_t begin_ = 0;       // where the first starts there
};

Shape shape_of(const Slice& slice, const Shape& whole);

// local = the slice's elements of `whole`, a tensor of this shape.
void cut(const Shape& shape, const Slice& slice, std::span<const float> whole,
         std::span<float> local);
// The other way: writes the slice's elements into `whole` and leaves the others.
void paste(const Shape& shape, const Slice& slice, std::span<const float> local,
           std::span<float> whole);

}  // namespace orchard
