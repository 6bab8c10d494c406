// Tensor maps for the copy engine of sm_90.
#pragma once

#include <cuda.h>  // the type alone: the driver is found at run time

#include "kernels/gpu/tensor_box.h"

namespace orchard::cuda {

using TensorMap = CUtensorMap;

// Throws Error where the driver refuses, or is too old to know.
TensorMap make_tensor_map(const TensorBox& box);

}  // namespace orchard::cuda
