#include "kernels/cuda/tensor_map.h"

#include "kernels/cuda/call.h"

namespace orchard::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

CUtensorMapSwizzle swizzle_of(const TensorBox& box) {
  switch (box.swizzle) {
    case Swizzle::none:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
    case Swizzle::bytes_32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::bytes_64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::bytes_128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
  }
  fail("a tensor map has no swizzle {}", static_cast<int>(box.swizzle));
}

}  // namespace

TensorMap make_tensor_map(const TensorBox& box) {
  static const auto encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled"));
  constexpr unsigned rank = 3;
  const bool is_f32 = box.dtype == DType::f32;
  const auto element_bytes = static_cast<cuuint64_t>(size_of(box.dtype));
  const auto cols = static_cast<cuuint64_t>(box.cols), rows = static_cast<cuuint64_t>(box.rows);
  // The innermost dimension first; its stride is understood.
  const cuuint64_t extents[rank] = {cols, rows, static_cast<cuuint64_t>(box.matrices)};
  const cuuint64_t strides[rank - 1] = {element_bytes * cols, element_bytes * cols * rows};
  const cuuint32_t sides[rank] = {static_cast<cuuint32_t>(box.box_cols),
                                  static_cast<cuuint32_t>(box.box_rows), 1};
  const cuuint32_t steps[rank] = {1, 1, 1};
  TensorMap map;
  const CUresult status = encode(
      &map, is_f32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank,
      const_cast<void*>(box.data), extents, strides, sides, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle_of(box), CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    fail("cuTensorMapEncodeTiled({}, {} matrices of [{}, {}] in boxes of [{}, {}]) failed: {}",
         box.data, box.matrices, box.rows, box.cols, box.box_rows, box.box_cols, text_of(status));
  }
  return map;
}

}  // namespace orchard::cuda
