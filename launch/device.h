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

// Which of the ranks of its node this one is, from 0.
int rank_on_node(const Communicator& ranks);

}  // namespace orchard
