// What kernels move and compute by the emulator's counters, for docs/kernel_counters.tsv: under CTest
// each test that counts leaves a line for what it counted in the file that ORCHARD_COUNTERS_REPORT
// names, and kernel_counters_test compares the lines of all with the table.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

#include "kernels/core/error.h"
#include "kernels/simt/counters.h"

namespace orchard::testing {

// What an operation cannot do without, however it is computed; 0 where that is no measure of it.
struct Compulsory {
  std::uint64_t bytes = 0;         // of DRAM: operands read and results written once a launch
  std::uint64_t tensor_flops = 0;  // without padding
};

inline std::string ratio_text(std::uint64_t actual, std::uint64_t compulsory) {
  if (compulsory == 0) return "-";
  return fmt::format("{:.3f}", static_cast<double>(actual) / static_cast<double>(compulsory));
}

inline void report_counters(const std::string& what, const std::string& shape,
                            const simt::Counters& counters, const Compulsory& compulsory) {
  const char* const path = std::getenv("ORCHARD_COUNTERS_REPORT");
  if (!path) return;
  static std::ofstream file(path);
  const simt::SharedCounters &loads = counters.shared_loads, &stores = counters.shared_stores;
  file << what << '\t' << shape << '\t' << ratio_text(counters.dram.bytes(), compulsory.bytes)
       << '\t' << ratio_text(counters.loads.sectors, counters.loads.ideal_sectors) << '\t'
       << ratio_text(counters.stores.sectors, counters.stores.ideal_sectors) << '\t'
       << ratio_text(loads.wavefronts + stores.wavefronts,
                     loads.ideal_wavefronts + stores.ideal_wavefronts)
       << '\t' << ratio_text(counters.tensor_flops, compulsory.tensor_flops) << std::endl;
  require(file.good(), "cannot write {}", path);
}

}  // namespace orchard::testing
