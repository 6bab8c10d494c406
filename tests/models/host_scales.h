// Scales of losses in host memory, for passes on the CPU: they must outlive the pass.
#pragma once

#include "models/batch.h"

namespace orchard::testing {

struct HostScales {
  float target = 1, balance = 0, z = 0;

  operator LossScales() const {  // NOLINT(google-explicit-constructor)
    return {.target = view(target), .balance = view(balance), .z = view(z)};
  }

 private:
  static ConstTensor view(const float& number) {
    return {&number, DType::f32, {1}, DeviceKind::cpu};
  }
};

}  // namespace orchard::testing
