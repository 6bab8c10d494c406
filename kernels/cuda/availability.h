// Why a GPU cannot be used here, in one line that says what to do about it.
#pragma once

#include <string>

namespace orchard::cuda {

// What CUDA knows before any GPU is used. Versions are CUDA's: 13000 for 13.0.
struct Availability {
  int driver_version = 0;  // the newest CUDA that the driver knows; 0: there is no driver
  int runtime_version = 0;
  std::string error;  // of counting the GPUs: "text (name)"; empty: none
  int devices = 0;
  int ordinal = 0;             // the one asked for
  int compute_capability = 0;  // its own, 90 for sm_90
};

Availability find_availability(int ordinal);

// Empty where the GPU can be used.
std::string absence_of_gpu(const Availability& found);

}  // namespace orchard::cuda
