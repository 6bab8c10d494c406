#include "kernels/simt/tensor_map.h"

#include <cstring>

#include "kernels/core/error.h"

namespace orchard::simt {

TensorMap make_tensor_map(const TensorBox& box) {
  require(reinterpret_cast<std::uintptr_t>(box.data) % 16 == 0,
          "a tensor map's data must be aligned to 16 bytes");
  require(box.cols > 0 && box.rows > 0 && box.matrices > 0, "a tensor map needs extents above 0");
  require(box.cols % 8 == 0, "a tensor map's rows must be a multiple of 16 bytes: {} bf16",
          box.cols);
  require(box.box_rows > 0 && box.box_rows <= 256 && box.box_cols > 0 && box.box_cols <= 64 &&
              box.box_cols % 8 == 0,
          "a tensor map's box of {} x {} is not within 256 rows of 8, 16 .. 64 elements",
          box.box_rows, box.box_cols);
  return {box};
}

void perform(const TensorLoad& load, std::byte* shared_begin) {
  const TensorBox& box = load.box;
  const auto first = static_cast<std::size_t>(static_cast<std::byte*>(load.shared) - shared_begin);
  const auto* const data = static_cast<const std::uint16_t*>(box.data);
  for (int r = 0; r < box.box_rows; ++r) {
    for (int c = 0; c < box.box_cols; ++c) {
      const std::int64_t row = load.row + r, col = load.col + c, matrix = load.matrix;
      const bool inside = row >= 0 && row < box.rows && col >= 0 && col < box.cols && matrix >= 0 &&
                          matrix < box.matrices;
      const std::uint16_t value =
          inside ? data[(matrix * box.rows + row) * box.cols + col] : std::uint16_t{0};
      const std::size_t at = first + 2 * static_cast<std::size_t>(r * box.box_cols + c);
      std::memcpy(shared_begin + swizzle_128(at), &value, sizeof value);
    }
  }
}

}  // namespace orchard::simt
