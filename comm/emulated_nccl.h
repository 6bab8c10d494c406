// NCCL for emulated devices: its calls become messages of MPI that the emulator's streams wait for.
//
// Data leaves the device when its stream gets there, and arrives when somebody waits; so a host that
// forgets to wait, or ranks whose calls do not match, show here as they would with NCCL. Messages pass
// through host memory, because a device's memory is unmapped while none of its streams runs.
#pragma once

#include <memory>

#include "comm/nccl_library.h"

namespace orchard {

// All ranks of MPI_COMM_WORLD call it together. It must not outlive the MpiSession.
std::shared_ptr<NcclLibrary> make_emulated_nccl();

}  // namespace orchard
