// The extents of a dense row-major tensor, at most five dimensions, outermost first.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "kernels/core/error.h"

namespace orchard {
class Shape;
}

// Messages take shapes as they are: a check that holds makes no text.
template <>
struct fmt::formatter<orchard::Shape> {
  constexpr auto parse(fmt::format_parse_context& context) const { return context.begin(); }
  fmt::format_context::iterator format(const orchard::Shape& shape,
                                       fmt::format_context& context) const;
};

namespace orchard {

class Shape {
 public:
  static constexpr int max_rank = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) {
    require(extents.size() <= max_rank, "a shape has at most {} dimensions, not {}", max_rank,
            extents.size());
    for (const std::int64_t extent : extents) append(extent);
  }

  int rank() const { return rank_; }

  // Extent of dimension `i`; negative `i` counts from the innermost.
  std::int64_t operator[](int i) const { return extents_[checked(i)]; }

  void append(std::int64_t extent) {
    require(rank_ < max_rank && extent >= 0, "cannot append extent {} to shape {}", extent, *this);
    extents_[rank_++] = extent;
  }

  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= extents_[i];
    return n;
  }

  // This shape with dimension `i` replaced.
  Shape with(int i, std::int64_t extent) const {
    Shape other = *this;
    other.extents_[checked(i)] = extent;
    return other;
  }

  bool operator==(const Shape&) const = default;

 private:
  int checked(int i) const {
    const int index = i < 0 ? i + rank_ : i;
    require(index >= 0 && index < rank_, "dimension {} of shape {} does not exist", i, *this);
    return index;
  }

  std::array<std::int64_t, max_rank> extents_{};
  int rank_ = 0;
};

}  // namespace orchard

// "[2, 3]"
inline fmt::format_context::iterator fmt::formatter<orchard::Shape>::format(
    const orchard::Shape& shape, fmt::format_context& context) const {
  auto out = context.out();
  *out++ = '[';
  for (int i = 0; i < shape.rank(); ++i) out = fmt::format_to(out, "{}{}", i ? ", " : "", shape[i]);
  *out++ = ']';
  return out;
}
