// The scales of a step's losses, on the device.
#pragma once

#include "kernels/device/host_memory.h"
#include "train/step_losses.h"

namespace orchard {

class StepScales {
 public:
  // The device must outlive it.
  explicit StepScales(Device& device)
      : memory_(device.allocate(count * sizeof(float))),
        host_(count, 0.0f, HostAllocator<float>(device)) {}

  // Queues the copy of a step's: once the stream has been synchronised, the next step's may follow. They
  // lie at the same addresses in every step.
  LossScales upload(Stream& stream, const StepTotals& totals, const MoeConfig& moe);

 private:
  static constexpr std::size_t count = 3;

  Buffer memory_;
  HostVector<float> host_;
};

}  // namespace orchard
