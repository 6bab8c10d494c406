#include "launch/device.h"

#include <algorithm>

#include "kernels/simt/simt_device.h"
#include "launch/configuration_error.h"
#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace orchard {

std::unique_ptr<Device> open_device(const RunConfig& run, int rank_on_node) {
  switch (run.device) {
    case DeviceKind::cpu:
      return make_cpu_device();
    case DeviceKind::simt:
      return make_simt_device(simt_options(run.simt_arch));
    case DeviceKind::cuda:
#ifdef ORCHARD_HAS_CUDA
      return make_cuda_device(rank_on_node % std::max(cuda_device_count(), 1));
#else
      (void)rank_on_node;
      throw ConfigurationError(
          "--device cuda: this program was built without CUDA. Build it with the preset cuda "
          "(launch/build.sh cuda), or run with --device cpu");
#endif
  }
  fail("device kind {} is unknown", static_cast<int>(run.device));
}

int rank_on_node(const Communicator& ranks) {
  const auto nodes = ranks.nodes().first(static_cast<std::size_t>(ranks.rank()) + 1);
  return static_cast<int>(std::ranges::count(nodes, nodes.back())) - 1;
}

}  // namespace orchard
