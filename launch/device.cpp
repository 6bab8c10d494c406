#include "launch/device.h"

#include <algorithm>

#include "comm/emulated_nccl.h"
#include "comm/nccl.h"
#include "kernels/simt/simt_device.h"
#include "launch/configuration_error.h"
#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace orchard {
namespace {

// Why this rank's GPU cannot communicate by itself, or the library with which it does.
struct FoundNccl {
  std::shared_ptr<NcclLibrary> library;
  std::string obstacle;
};

int gpus_of_node() {
#ifdef ORCHARD_HAS_CUDA
  return cuda_device_count();
#else
  return 0;
#endif
}

FoundNccl find_nccl(const Communicator& world) {
  const auto nodes = world.nodes();
  const auto here = std::ranges::count(nodes, nodes[static_cast<std::size_t>(world.rank())]);
  if (here > gpus_of_node())
    return {nullptr, fmt::format("{} ranks share the {} GPUs of a node", here, gpus_of_node())};
  try {
    return {load_nccl(), {}};
  } catch (const Error& error) {
    return {nullptr, error.what()};
  }
}

}  // namespace

DeviceRanks connect_devices(Communicator& world, Device& device) {
  if (world.size() == 1 || device.kind() == DeviceKind::cpu) return {};
  if (device.kind() == DeviceKind::simt)
    return {make_nccl_world(world, {.device = device, .library = make_emulated_nccl()}), {}};
  FoundNccl found = find_nccl(world);
  double missing = found.library ? 0 : 1;
  world.max_on_host({&missing, 1});
  if (missing > 0)
    return {nullptr, found.obstacle.empty() ? "another rank lacks NCCL" : found.obstacle};
  return {make_nccl_world(world, {.device = device, .library = found.library}), {}};
}

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
