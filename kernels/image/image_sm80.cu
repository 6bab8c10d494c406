// Registers picture preparation of GPUs.
#include "kernels/gpu/register.h"
#include "kernels/image/image_gpu.h"

namespace orchard::GPU_NAMESPACE {

void register_image(OperationTable& table) {
  register_resize(table);
  register_patchify(table);
}

}  // namespace orchard::GPU_NAMESPACE
