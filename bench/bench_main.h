// What every bench_* program shares: main, one way to measure, and one line of output a shape.
//
//   bench_gemm                     name, time, GFLOP/s, GB/s and the ratio to a reference
//   bench_gemm --json              the same as JSON lines: {"name":…,"seconds":…,"gflops":…,…}
//   bench_gemm --benchmark_filter=forward/f32      and Google Benchmark's other options
//
// A program registers functions that call `measure`; main comes with the library
// orchard_bench_main.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <string>

namespace orchard::bench {

// What one call does. Zero: not meaningful for it, not printed.
struct Work {
  double flops = 0;
  double bytes = 0;  // that must move: every operand once
};

// Something else that does the same work, timed in turn with ours so that both see the same
// machine.
struct Reference {
  std::string name;  // "sgemm", "copy", ...; empty: there is none
  std::function<void()> call;
};

// Calls once to warm up, then for as long as Google Benchmark asks. What is printed is the quickest
// call, which other load on the machine disturbs least; the ratio is the reference's quickest time
// over ours, so that above 1 we are faster.
void measure(benchmark::State& state, const Work& work, const std::function<void()>& call,
             const Reference& reference = {});

}  // namespace orchard::bench
