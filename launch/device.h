// The device that a run's model lives on, and how it reaches those of other ranks.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "comm/nccl_library.h"
#include "kernels/device/device.h"
#include "launch/job.h"
#include "train/run_config.h"

namespace orchard {

// The device that run.device names. Of the GPUs of a node, the rank with this number on it takes the
// one of that number, modulo their number. Throws ConfigurationError where this program was built
// without CUDA, and Error, which says what is missing, where there is no GPU that it can use.
std::unique_ptr<Device> open_device(const RunConfig& run, int rank_on_node = 0);

// What carries data between the devices of ranks.
struct DeviceLinks {
  std::shared_ptr<NcclLibrary> library;  // null: it travels as the hosts' does
  std::string detour;  // why data of devices passes through host memory; empty: it need not
};

struct NodeRanks {
  int ranks = 1, gpus = 0;
};

// Of the ranks of one node. `load` returns NCCL or throws Error. Throws ConfigurationError, with the
// cure, where NCCL is wanted and `load` throws: a job should not run at a fraction of its speed
// because of a library that somebody forgot.
DeviceLinks links_of_node(DeviceTransport asked, NodeRanks node,
                          const std::function<std::shared_ptr<NcclLibrary>()>& load);

// Of all ranks, which call it together: as links_of_node says of each, but through host memory
// everywhere where one node's ranks need it. Emulated GPUs have what stands for NCCL.
DeviceLinks find_links(const RunConfig& run, Job& job, const Device& device);

// The ranks of a job whose data lies on their devices.
struct DeviceRanks {
  std::unique_ptr<Communicator> own;  // over `world`, which outlives it; null: `world` itself
  Communicator& of(Communicator& world) const { return own ? *own : world; }
};

// All ranks call it together.
DeviceRanks connect_devices(Communicator& world, Device& device, const DeviceLinks& links);

// Which of the ranks of its node this one is, from 0.
int rank_on_node(const Communicator& ranks);

}  // namespace orchard
