// What the tests that run kernels as PTX leave behind, a line a kernel, for the tests that read it over
// all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

namespace orchard::testing {

// What the launches of one kernel had in common, and what not.
struct ComparedLaunches {
  std::uint64_t launches = 0;
  std::uint64_t unequal = 0;  // whose memory differs in some byte
  // Of global loads and stores.
  std::uint64_t compiled_bytes = 0, ptx_bytes = 0;
  std::uint64_t compiled_sectors = 0, ptx_sectors = 0;
  std::uint64_t compiled_requests = 0, ptx_requests = 0;
  // The largest of a block.
  std::uint64_t threads = 0, shared_bytes = 0;

  ComparedLaunches& operator+=(const ComparedLaunches& other) {
    launches += other.launches, unequal += other.unequal;
    compiled_bytes += other.compiled_bytes, ptx_bytes += other.ptx_bytes;
    compiled_sectors += other.compiled_sectors, ptx_sectors += other.ptx_sectors;
    compiled_requests += other.compiled_requests, ptx_requests += other.ptx_requests;
    threads = std::max(threads, other.threads);
    shared_bytes = std::max(shared_bytes, other.shared_bytes);
    return *this;
  }
};

using LaunchRecords = std::map<std::string, ComparedLaunches>;  // by the kernel's name

inline void write_report(std::ostream& file, const LaunchRecords& records) {
  for (const auto& [kernel, r] : records) {
    file << r.launches << '\t' << r.unequal << '\t' << r.compiled_bytes << '\t' << r.ptx_bytes
         << '\t' << r.compiled_sectors << '\t' << r.ptx_sectors << '\t' << r.compiled_requests
         << '\t' << r.ptx_requests << '\t' << r.threads << '\t' << r.shared_bytes << '\t' << kernel
         << '\n';
  }
}

// All reports of a folder together, or all but the one of the test `but`.
inline LaunchRecords read_reports(const std::string& folder, const std::string& but = {}) {
  LaunchRecords out;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().stem() == but) continue;
    std::ifstream file(entry.path());
    ComparedLaunches r;
    std::string kernel;
    while (file >> r.launches >> r.unequal >> r.compiled_bytes >> r.ptx_bytes >>
               r.compiled_sectors >> r.ptx_sectors >> r.compiled_requests >> r.ptx_requests >>
               r.threads >> r.shared_bytes &&
           std::getline(file >> std::ws, kernel)) {
      out[kernel] += r;
    }
  }
  return out;
}

}  // namespace orchard::testing
