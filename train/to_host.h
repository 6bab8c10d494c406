// Tensors to host memory.
#pragma once

#include <vector>

#include "kernels/device/device.h"

namespace orchard {

// Queues the copy: `host` has the elements once the stream is synchronised.
template <class T>
void copy_to_host(Stream& stream, std::vector<T>& host, const ConstTensor& tensor) {
  host.resize(static_cast<std::size_t>(tensor.numel()));
  stream.copy(Tensor(host.data(), tensor.dtype(), tensor.shape(), DeviceKind::cpu), tensor);
}

}  // namespace orchard
