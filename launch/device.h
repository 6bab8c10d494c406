// The device that a run's model lives on.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/device/device.h"
#include "train/run_config.h"

namespace orchard {

// The device that run.device names. Of the GPUs of a node, the rank with this number on it takes the
// one of that number, modulo their number. Throws ConfigurationError where this program was built
// without CUDA, and Error, which says what is missing, where there is no GPU that it can use.
std::unique_ptr<Device> open_device(const RunConfig& run, int rank_on_node = 0);

// The ranks of a job whose data lies on their devices.
struct DeviceRanks {
  std::unique_ptr<Communicator> own;  // over `world`, which outlives it; null: `world` itself
  std::string
      obstacle;  // why GPUs do not communicate by themselves, so that data passes through hosts
  Communicator& of(Communicator& world) const { return own ? *own : world; }
};

// GPUs communicate over NCCL where it is installed and each rank of a node has a GPU of its own;
// emulated ones over what stands for it. All ranks call it together.
DeviceRanks connect_devices(Communicator& world, Device& device);

// Which of the ranks of its node this one is, from 0.
int rank_on_node(const Communicator& ranks);

}  // namespace orchard
