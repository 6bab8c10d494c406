#include "kernels/simt/tensor_map.h"

#include "kernels/core/error.h"

namespace orchard::simt {

TensorMap make_tensor_map(const TensorBox& box) {
  require(reinterpret_cast<std::uintptr_t>(box.data) % 16 == 0,
          "a tensor map's data must be aligned to 16 bytes");
  require(box.cols > 0 && box.rows > 0 && box.matrices > 0, "a tensor map needs extents above 0");
  require(box.dtype == DType::bf16 || box.dtype == DType::f32,
          "the emulator's tensor maps are of bf16 or f32, not {}", name_of(box.dtype));
  const int unit =
      16 / static_cast<int>(size_of(box.dtype));  // elements that one copy moves at least
  require(box.cols % unit == 0, "a tensor map's rows must be a multiple of 16 bytes: {} {}",
          box.cols, name_of(box.dtype));
  require(
      box.box_rows > 0 && box.box_rows <= 256 && box.box_cols > 0 && box.box_cols <= 256 &&
          box.box_cols % unit == 0,
      "a tensor map's box of {} x {} is not within 256 rows of a multiple of {} up to 256 elements",
      box.box_rows, box.box_cols, unit);
  // The driver also takes narrower rows; how far apart they lie then, the manuals do not say.
  const int width = static_cast<int>(box.swizzle) * unit;
  require(box.swizzle == Swizzle::none || box.box_cols == width,
          "a tensor map's box has rows of {} elements, and its swizzle moves {}", box.box_cols,
          width);
  return {box};
}

}  // namespace orchard::simt
