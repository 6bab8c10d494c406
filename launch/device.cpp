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

int gpus_of_node() {
#ifdef ORCHARD_HAS_CUDA
  return cuda_device_count();
#else
  return 0;
#endif
}

int ranks_of_node(const Communicator& world) {
  const auto nodes = world.nodes();
  return static_cast<int>(std::ranges::count(nodes, nodes[static_cast<std::size_t>(world.rank())]));
}

}  // namespace

DeviceLinks links_of_node(DeviceTransport asked, NodeRanks node,
                          const std::function<std::shared_ptr<NcclLibrary>()>& load) {
  if (asked == DeviceTransport::host) return {nullptr, "--transport host"};
  if (node.ranks > node.gpus)
    return {nullptr, fmt::format("{} ranks share the {} GPUs of a node", node.ranks, node.gpus)};
  try {
    return {load(), {}};
  } catch (const Error& error) {
    throw ConfigurationError(
        fmt::format("--device cuda on several ranks: {}. Install NCCL (package libnccl2), or pass "
                    "--transport host, with which data goes through host memory, slowly",
                    error.what()));
  }
}

DeviceLinks find_links(const RunConfig& run, Job& job, const Device& device) {
  Communicator& world = job.ranks();
  if (world.size() == 1 || device.kind() == DeviceKind::cpu) return {};
  DeviceLinks links;
  job.together([&] {
    const int ranks = ranks_of_node(world);
    links = device.kind() == DeviceKind::simt
                ? links_of_node(run.transport, {.ranks = ranks, .gpus = ranks}, make_emulated_nccl)
                : links_of_node(run.transport, {.ranks = ranks, .gpus = gpus_of_node()}, load_nccl);
  });
  double detours = links.library ? 0 : 1;
  world.max_on_host({&detours, 1});
  if (detours > 0 && links.library) links = {nullptr, "ranks of another node share GPUs"};
  return links;
}

DeviceRanks connect_devices(Communicator& world, Device& device, const DeviceLinks& links) {
  if (!links.library) return {};
  return {make_nccl_world(world, {.device = device, .library = links.library})};
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
