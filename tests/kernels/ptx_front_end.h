// With the environment variable ORCHARD_PTX_MODULES, which names a file that lists PTX modules, the tests'
// emulator runs what nvcc made of the kernels in place of what the host compiler made of them, so that
// every test of a kernel is one of its PTX, too.
//
// With ORCHARD_PTX_REPORT in addition, each launch runs both on the same memory, the PTX last, and the
// file of that name gets a line for each kernel, which ptx_report_test reads.
#pragma once

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "kernels/simt/ptx_text/program.h"
#include "kernels/simt/simt_device.h"

namespace orchard::testing {

// What the launches of one kernel had in common, and what not.
struct ComparedLaunches {
  std::uint64_t launches = 0;
  std::uint64_t unequal = 0;  // whose memory differs in some byte
  // Of global loads and stores.
  std::uint64_t compiled_bytes = 0, ptx_bytes = 0;
  std::uint64_t compiled_sectors = 0, ptx_sectors = 0;
  std::uint64_t compiled_requests = 0, ptx_requests = 0;
};

class ComparingFrontEnd final : public simt::FrontEnd {
 public:
  ComparingFrontEnd(simt::ptx::Program& program, std::string report)
      : program_(program), report_(std::move(report)) {}
  ~ComparingFrontEnd() override { write_report(); }
  ComparingFrontEnd(const ComparingFrontEnd&) = delete;
  ComparingFrontEnd& operator=(const ComparingFrontEnd&) = delete;

  void launch(const LaunchShape&, const simt::KernelCall& call, simt::LaunchSite& site) override {
    const simt::ptx::Kernel& kernel = program_.find(simt::ptx::entry_of(call.kernel));
    const simt::HeapImage before = site.save_memory();
    const simt::Counters start = site.counters();
    site.run(call.thread);
    const std::vector<std::byte> expected = site.save_memory().bytes;
    const simt::Counters middle = site.counters();
    site.restore_memory(before);
    site.run(simt::ptx::Program::thread_of(kernel, call.parameters));
    const simt::Counters& end = site.counters();

    ComparedLaunches& record = records_[kernel.name];
    ++record.launches;
    record.unequal += site.save_memory().bytes != expected;
    record.compiled_bytes += bytes(middle) - bytes(start);
    record.ptx_bytes += bytes(end) - bytes(middle);
    record.compiled_sectors += sectors(middle) - sectors(start);
    record.ptx_sectors += sectors(end) - sectors(middle);
    record.compiled_requests += requests(middle) - requests(start);
    record.ptx_requests += requests(end) - requests(middle);
  }

 private:
  static std::uint64_t bytes(const simt::Counters& c) { return c.loads.bytes + c.stores.bytes; }
  static std::uint64_t sectors(const simt::Counters& c) {
    return c.loads.sectors + c.stores.sectors;
  }
  static std::uint64_t requests(const simt::Counters& c) {
    return c.loads.requests + c.stores.requests;
  }

  void write_report() const {
    std::ofstream file(report_);
    if (!file) std::cerr << "cannot write " << report_ << '\n', std::abort();
    for (const auto& [kernel, r] : records_) {
      file << r.launches << '\t' << r.unequal << '\t' << r.compiled_bytes << '\t' << r.ptx_bytes
           << '\t' << r.compiled_sectors << '\t' << r.ptx_sectors << '\t' << r.compiled_requests
           << '\t' << r.ptx_requests << '\t' << kernel << '\n';
    }
  }

  simt::ptx::Program& program_;
  std::string report_;
  std::map<std::string, ComparedLaunches> records_;
};

// nullptr where the environment asks for none.
inline simt::FrontEnd* front_end() {
  const char* const modules = std::getenv("ORCHARD_PTX_MODULES");
  if (!modules) return nullptr;
  static simt::ptx::Program program(simt::ptx::read_modules(modules));
  const char* const report = std::getenv("ORCHARD_PTX_REPORT");
  if (!report) return &program;
  static ComparingFrontEnd comparing(program, report);
  return &comparing;
}

inline SimtOptions with_front_end(SimtOptions options) {
  options.front_end = front_end();
  if (std::getenv("ORCHARD_PTX_REPORT")) options.counting = simt::Counting::on;
  return options;
}

}  // namespace orchard::testing
