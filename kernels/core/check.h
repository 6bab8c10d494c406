// What every operation checks before it runs: operand present, shape, dtype, device.
#pragma once

#include <initializer_list>
#include <string_view>

#include "kernels/core/tensor.h"

namespace orchard {

// What activations and their gradients are made of.
inline constexpr std::initializer_list<DType> float_types = {DType::f32, DType::bf16};

class Checker {
 public:
  Checker(std::string_view operation, DeviceKind device) : operation_(operation), device_(device) {}

  // `tensor` is present, lives on the stream's device and has this shape and one of these dtypes.
  void operand(std::string_view name, const ConstTensor& tensor, const Shape& shape,
               std::initializer_list<DType> dtypes) const {
    require(static_cast<bool>(tensor) || shape.numel() == 0, "{}: operand {} is missing",
            operation_, name);
    require(tensor.shape() == shape, "{}: {} has shape {}, expected {}", operation_, name,
            tensor.shape(), shape);
    require(!tensor || tensor.device() == device_, "{}: {} lies on device {}, the stream is on {}",
            operation_, name, name_of(tensor.device()), name_of(device_));
    for (const DType dtype : dtypes) {
      if (tensor.dtype() == dtype) return;
    }
    fail("{}: {} has dtype {}, which the operation does not take", operation_, name,
         name_of(tensor.dtype()));
  }

  // As operand, but the tensor may be absent.
  void optional(std::string_view name, const ConstTensor& tensor, const Shape& shape,
                std::initializer_list<DType> dtypes) const {
    if (tensor) operand(name, tensor, shape, dtypes);
  }

  void that(bool ok, std::string_view rule) const { require(ok, "{}: {}", operation_, rule); }

 private:
  std::string_view operation_;
  DeviceKind device_;
};

}  // namespace orchard
