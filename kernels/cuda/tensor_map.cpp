#include "kernels/cuda/tensor_map.h"

#include "kernels/cuda/cuda_stream.h"

namespace orchard::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// Asked of the driver by name, so that the program starts where there is none.
Encode find_encode() {
  constexpr unsigned first_version = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, first_version,
                                         cudaEnableDefault, &result),
        "cudaGetDriverEntryPointByVersion of cuTensorMapEncodeTiled");
  require(result == cudaDriverEntryPointSuccess && function != nullptr,
          "this driver has no cuTensorMapEncodeTiled: update it to one for CUDA 12");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

TensorMap make_tensor_map(const TensorBox& box) {
  static const Encode encode = find_encode();
  constexpr unsigned rank = 3;
  constexpr cuuint64_t element_bytes = 2;
  const auto cols = static_cast<cuuint64_t>(box.cols), rows = static_cast<cuuint64_t>(box.rows);
  // The innermost dimension first; its stride is understood.
  const cuuint64_t extents[rank] = {cols, rows, static_cast<cuuint64_t>(box.matrices)};
  const cuuint64_t strides[rank - 1] = {element_bytes * cols, element_bytes * cols * rows};
  const cuuint32_t sides[rank] = {static_cast<cuuint32_t>(box.box_cols),
                                  static_cast<cuuint32_t>(box.box_rows), 1};
  const cuuint32_t steps[rank] = {1, 1, 1};
  TensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<void*>(box.data), extents,
             strides, sides, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS,
          "cuTensorMapEncodeTiled refused {} matrices of [{}, {}] in boxes of [{}, {}]: error {}",
          box.matrices, box.rows, box.cols, box.box_rows, box.box_cols, static_cast<int>(status));
  return map;
}

}  // namespace orchard::cuda
