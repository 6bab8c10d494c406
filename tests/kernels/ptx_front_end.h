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
#include <memory>
#include <string>

#include "kernels/simt/ptx_text/program.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/ptx_reports.h"

namespace orchard::testing {

class ComparingFrontEnd final : public simt::FrontEnd {
 public:
  ComparingFrontEnd(simt::ptx::Program& program, std::string report)
      : program_(program), report_(std::move(report)) {}
  ~ComparingFrontEnd() override { write(); }
  ComparingFrontEnd(const ComparingFrontEnd&) = delete;
  ComparingFrontEnd& operator=(const ComparingFrontEnd&) = delete;

  void launch(const LaunchShape& shape, const simt::KernelCall& call,
              simt::LaunchSite& site) override {
    const simt::ptx::Kernel& kernel = program_.find(simt::ptx::entry_of(call.kernel));
    const simt::HeapImage before = site.save_memory();
    const simt::Counters start = site.counters();
    site.run(call.thread);
    const std::vector<std::byte> expected = site.save_memory().bytes;
    const simt::Counters middle = site.counters();
    site.restore_memory(before);
    site.run(simt::ptx::Program::thread_of(kernel, call.parameters));
    const simt::Counters& end = site.counters();

    records_[kernel.name] += {.launches = 1,
                              .unequal = site.save_memory().bytes != expected,
                              .compiled_bytes = bytes(middle) - bytes(start),
                              .ptx_bytes = bytes(end) - bytes(middle),
                              .compiled_sectors = sectors(middle) - sectors(start),
                              .ptx_sectors = sectors(end) - sectors(middle),
                              .compiled_requests = requests(middle) - requests(start),
                              .ptx_requests = requests(end) - requests(middle),
                              .threads = shape.block.volume(),
                              .shared_bytes = shape.shared_bytes};
  }

 private:
  static std::uint64_t bytes(const simt::Counters& c) { return c.loads.bytes + c.stores.bytes; }
  static std::uint64_t sectors(const simt::Counters& c) {
    return c.loads.sectors + c.stores.sectors;
  }
  static std::uint64_t requests(const simt::Counters& c) {
    return c.loads.requests + c.stores.requests;
  }

  void write() const {
    std::ofstream file(report_);
    if (!file) std::cerr << "cannot write " << report_ << '\n', std::abort();
    write_report(file, records_);
  }

  simt::ptx::Program& program_;
  std::string report_;
  LaunchRecords records_;
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
