#include "bench/bench_main.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

namespace orchard::bench {
namespace {

double seconds_of(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

enum class Format { text, json };

class LineReporter final : public benchmark::BenchmarkReporter {
 public:
  explicit LineReporter(Format format) : format_(format) {}

  bool ReportContext(const Context&) override { return true; }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.error_occurred) {
        fmt::print(stderr, "{}: {}\n", run.benchmark_name(), run.error_message);
      } else if (run.run_type == Run::RT_Iteration) {
        format_ == Format::json ? print_json(run) : print_text(run);
      }
    }
    std::fflush(stdout);
  }

 private:
  static double counter(const Run& run, const char* name) {
    const auto it = run.counters.find(name);
    return it == run.counters.end() ? 0 : it->second.value;
  }

  // The counters that a program adds to those of `measure`.
  template <class Visit>
  static void for_each_other(const Run& run, const Visit& visit) {
    constexpr std::string_view own[] = {"seconds", "flops", "bytes", "reference_seconds"};
    for (const auto& [name, value] : run.counters) {
      if (std::find(std::begin(own), std::end(own), name) == std::end(own))
        visit(name, value.value);
    }
  }

  static std::string name_of(const Run& run) {
    // Google Benchmark appends its own settings to the name.
    return run.run_name.function_name + (run.run_name.args.empty() ? "" : "/" + run.run_name.args);
  }

  static void print_text(const Run& run) {
    const double seconds = counter(run, "seconds");
    fmt::print("{:<44} {:>10.1f} us", name_of(run), seconds * 1e6);
    if (const double flops = counter(run, "flops"))
      fmt::print(" {:>8.1f} GFLOP/s", flops / seconds * 1e-9);
    if (const double bytes = counter(run, "bytes"))
      fmt::print(" {:>7.1f} GB/s", bytes / seconds * 1e-9);
    if (const double reference = counter(run, "reference_seconds"))
      fmt::print(" {:>6.2f} x {}", reference / seconds, run.report_label);
    for_each_other(
        run, [](const std::string& name, double value) { fmt::print("  {} {:.2f}", name, value); });
    fmt::print("\n");
  }

  static void print_json(const Run& run) {
    const double seconds = counter(run, "seconds");
    nlohmann::ordered_json line{{"name", name_of(run)}, {"seconds", seconds}};
    if (const double flops = counter(run, "flops")) line["gflops"] = flops / seconds * 1e-9;
    if (const double bytes = counter(run, "bytes")) line["gb_per_s"] = bytes / seconds * 1e-9;
    if (const double reference = counter(run, "reference_seconds")) {
      line["reference"] = run.report_label;
      line["ratio"] = reference / seconds;
    }
    for_each_other(run, [&](const std::string& name, double value) { line[name] = value; });
    fmt::print("{}\n", line.dump());
  }

  Format format_;
};

}  // namespace

void measure(benchmark::State& state, const Work& work, const std::function<void()>& call,
             const Reference& reference) {
  double ours = std::numeric_limits<double>::infinity(), theirs = ours;
  call();
  if (reference.call) reference.call();
  for (auto _ : state) {
    const double seconds = seconds_of(call);
    state.SetIterationTime(seconds);
    ours = std::min(ours, seconds);
    if (reference.call) theirs = std::min(theirs, seconds_of(reference.call));
  }
  state.counters["seconds"] = ours;
  state.counters["flops"] = work.flops;
  state.counters["bytes"] = work.bytes;
  if (reference.call) {
    state.counters["reference_seconds"] = theirs;
    state.SetLabel(reference.name);
  }
}

}  // namespace orchard::bench

int main(int argc, char** argv) {
  using orchard::bench::Format;
  const auto is_json = [](const char* argument) { return std::string_view(argument) == "--json"; };
  char** const rest = std::remove_if(argv + 1, argv + argc, is_json);
  const Format format = rest == argv + argc ? Format::text : Format::json;
  argc = static_cast<int>(rest - argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  orchard::bench::LineReporter reporter(format);
  benchmark::RunSpecifiedBenchmarks(&reporter);
  return 0;
}
