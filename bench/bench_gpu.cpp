// bench_gpu [--json] [--filter TEXT] [--list]
//
// Times the operations on the GPU at the shapes of the presets, one line a shape: microseconds,
// TFLOP/s, GB/s, the share of the roofline (bench/gpu/roofline.h), and the ratio to the vendor's library, or
// to a plain copy of as many bytes, measured in turn in the same process (above 1: we are faster). Cases
// live in bench/gpu/, a file an operation, and take their shapes from the recipes of the presets
// (bench/gpu/presets.h). --list prints their names and needs no GPU.
#include <fmt/core.h>

#include <cstdio>
#include <optional>

#include "bench/command_line.h"
#include "bench/gpu/roofline.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cudnn.h"

namespace orchard::bench {
namespace {

struct Options {
  bool json = false, list = false;
  std::string filter;
};

// Nothing where only the help was asked for.
std::optional<Options> parse(int argc, char** argv) {
  Options options;
  CommandLine line("Operations on the GPU at the shapes of the presets");
  line.option("filter", options.filter, "of the cases, those whose name has this in it");
  line.flag("json", options.json, "print JSON lines");
  line.flag("list", options.list, "print the names of the cases alone");
  if (!line.parse(argc, argv)) return {};
  return options;
}

void measure(CudaBench& bench, const Roofline& roofline, const GpuCase& test, bool json) {
  const GpuCase::Calls calls = test.prepare(bench);
  const double us = bench.median_us(calls.ours);
  const double reference_us = calls.reference ? bench.median_us(calls.reference) : 0;
  const double tflops = test.flops / us * 1e-6, gbs = test.bytes / us * 1e-3;
  const double share = roofline.share(test, us);
  if (json) {
    fmt::print(
        "{{\"name\":\"{}\",\"us\":{:.2f},\"tflops\":{:.1f},\"gbs\":{:.1f},\"of_roofline\":{:.3f}",
        test.name, us, tflops, gbs, share);
    if (reference_us > 0) {
      fmt::print(",\"reference\":\"{}\",\"reference_us\":{:.2f},\"ratio\":{:.3f}",
                 calls.reference_name, reference_us, reference_us / us);
    }
    fmt::print("}}\n");
  } else {
    fmt::print("{:<56} {:>10.1f} us {:>8.1f} TFLOP/s {:>8.1f} GB/s {:>5.1f} %", test.name, us,
               tflops, gbs, 100 * share);
    if (reference_us > 0) fmt::print("  x {} {:.3f}", calls.reference_name, reference_us / us);
    fmt::print("\n");
  }
  std::fflush(stdout);
  bench.forget_operands();
}

int list(const Options& options) {
  for (const GpuCase& test : gpu_cases(options.filter)) fmt::print("{}\n", test.name);
  return 0;
}

int run_all(const Options& options) {
  CudaBench bench;
  fmt::print(stderr, "{}\n", bench.description());
  if (!cuda::cublaslt_absence().empty()) fmt::print(stderr, "{}\n", cuda::cublaslt_absence());
  if (!cuda::cudnn_absence().empty()) fmt::print(stderr, "{}\n", cuda::cudnn_absence());
  const Roofline roofline = Roofline::measure(bench);
  fmt::print(stderr, "roofline: {:.0f} TFLOP/s in bf16, {:.1f} in fp32, {:.0f} GB/s\n",
             roofline.bf16_tflops, roofline.f32_tflops, roofline.gbs);
  for (const GpuCase& test : gpu_cases(options.filter))
    measure(bench, roofline, test, options.json);
  return 0;
}

}  // namespace
}  // namespace orchard::bench

int main(int argc, char** argv) try {
  const auto options = orchard::bench::parse(argc, argv);
  if (!options) return 0;
  return options->list ? orchard::bench::list(*options) : orchard::bench::run_all(*options);
} catch (const std::exception& error) {
  fmt::print(stderr, "bench_gpu: {}\n", error.what());
  return 1;
}
