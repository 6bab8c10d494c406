// Tensors to host memory.
#pragma once

#include <vector>

#include "kernels/device/host_memory.h"

namespace orchard {

// Queues the copy: `host`, a std::vector or a HostVector, has the elements once the stream is
// synchronised.
template <class T, class Allocator>
void copy_to_host(Stream& stream, std::vector<T, Allocator>& host, const ConstTensor& tensor) {
  host.resize(static_cast<std::size_t>(tensor.numel()));
  stream.copy(Tensor(host.data(), tensor.dtype(), tensor.shape(), DeviceKind::cpu), tensor);
}

}  // namespace orchard
