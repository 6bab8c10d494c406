// Ranks whose devices communicate by themselves, without the host's memory.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/nccl_library.h"

namespace orchard {

class Device;

struct NcclContext {
  Device& device;  // of this rank; outlives the groups
  std::shared_ptr<NcclLibrary> library;
  // Reductions go in segments of so many bytes: a group's scratch is about as large.
  std::size_t segment_bytes = std::size_t{32} << 20;
};

// The ranks of `world`, which outlives the result, with their log of operations: memory of the device
// goes over NCCL, memory of the host over MPI. All of them call it. Tensors that are given to an
// operation on a stream of the device all lie on it, or all on the host. A `world` of one rank has
// nobody to talk to, and is refused.
std::unique_ptr<Communicator> make_nccl_world(Communicator& world, const NcclContext& context);

}  // namespace orchard
