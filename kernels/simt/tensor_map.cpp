#include "kernels/simt/tensor_map.h"

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

}  // namespace orchard::simt
