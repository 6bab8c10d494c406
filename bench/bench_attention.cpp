// GFLOP/s of attention, beside the machine's fp32 GEMM peak measured in the same process. FLOPs are
// those of the visible query-key pairs alone: 4·head_dim forward, 10·head_dim backward.
#include <benchmark/benchmark.h>
#include <dnnl.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

struct Workload {
  std::string name;
  std::int64_t heads, kv_heads, head_dim;
  Mask mask;
  std::vector<std::int32_t> lengths;
};

void report(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void gemm_peak(benchmark::State& state) {
  constexpr std::int64_t n = 2048;
  std::vector<float> a(n * n, 1.0f), b(n * n, 1.0f), c(n * n);
  for (auto _ : state) dnnl_sgemm('N', 'N', n, n, n, 1, a.data(), n, b.data(), n, 0, c.data(), n);
  report(state, 2.0 * n * n * n);
}

enum class Direction { forward, backward };

class Run {
 public:
  Run(const Workload& w, DType dtype) : workload_(w), device_(make_cpu_device()) {
    std::vector<std::int32_t> offsets = {0};
    for (const std::int32_t length : w.lengths) offsets.push_back(offsets.back() + length);
    const std::int64_t tokens = offsets.back();
    const Shape queries{tokens, w.heads, w.head_dim}, keys{tokens, w.kv_heads, w.head_dim};
    const Tensor q = random(dtype, queries), k = random(dtype, keys), v = random(dtype, keys);
    const Tensor d_out = random(dtype, queries);
    const Tensor offsets_tensor = allocate(DType::i32, {std::ssize(offsets)});
    std::copy(offsets.begin(), offsets.end(), offsets_tensor.data<std::int32_t>());
    const Tensor out = allocate(dtype, queries);
    const Tensor log_sum_exp = allocate(DType::f32, {tokens, w.heads});
    const auto scale = static_cast<float>(1 / std::sqrt(w.head_dim));
    forward_ = {.q = q,
                .k = k,
                .v = v,
                .query_offsets = offsets_tensor,
                .mask = w.mask,
                .scale = scale,
                .out = out,
                .log_sum_exp = log_sum_exp};
    backward_ = {.q = q,
                 .k = k,
                 .v = v,
                 .out = out,
                 .log_sum_exp = log_sum_exp,
                 .d_out = d_out,
                 .query_offsets = offsets_tensor,
                 .mask = w.mask,
                 .scale = scale,
                 .d_q = allocate(dtype, queries),
                 .d_k = allocate(dtype, keys),
                 .d_v = allocate(dtype, keys)};
    stream_ = device_->make_stream();
    run(*stream_, forward_);
  }

  void measure(benchmark::State& state, Direction direction) {
    for (auto _ : state) {
      direction == Direction::forward ? run(*stream_, forward_) : run(*stream_, backward_);
      stream_->synchronize();
    }
    double pairs = 0;
    for (const double n : workload_.lengths) {
      pairs += workload_.mask == Mask::full ? n * n : n * (n + 1) / 2;
    }
    report(state, pairs * static_cast<double>(workload_.heads * workload_.head_dim) *
                      (direction == Direction::forward ? 4 : 10));
  }

 private:
  Tensor allocate(DType dtype, const Shape& shape) {
    const std::size_t bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
    buffers_.push_back(device_->allocate(bytes));
    return buffers_.back().tensor(dtype, shape);
  }
  Tensor random(DType dtype, const Shape& shape) {
    const Tensor tensor = allocate(dtype, shape);
    std::normal_distribution<float> normal;
    const auto fill = [&](auto* data, auto convert) {
      const std::int64_t n = tensor.numel();
      for (std::int64_t i = 0; i < n; ++i) data[i] = convert(normal(engine_));
    };
    if (dtype == DType::f32) {
      fill(tensor.data<float>(), [](float x) { return x; });
    } else {
      fill(tensor.data<bf16>(), to_bf16);
    }
    return tensor;
  }

  Workload workload_;
  std::mt19937 engine_{1};
  std::unique_ptr<Device> device_;
  std::vector<Buffer> buffers_;
  AttentionForward forward_;
  AttentionBackward backward_;
  std::unique_ptr<Stream> stream_;
};

std::vector<Workload> workloads() {
  // Packed sequences of 512 tokens as stage 1 has them.
  const std::vector<std::int32_t> packed = {512, 300, 212, 120, 392, 100, 250, 162};
  return {{"causal_2048", 8, 4, 64, Mask::causal, {2048}},
          {"causal_2048_dim128", 4, 2, 128, Mask::causal, {2048}},
          {"packed_512", 8, 4, 64, Mask::causal, packed},
          {"vit_65_dim24", 8, 8, 24, Mask::full, std::vector<std::int32_t>(8, 65)},
          {"vit_65_dim32", 8, 8, 32, Mask::full, std::vector<std::int32_t>(8, 65)},
          {"vit_257_dim64", 8, 8, 64, Mask::full, std::vector<std::int32_t>(4, 257)},
          {"vit_257_dim80", 8, 8, 80, Mask::full, std::vector<std::int32_t>(4, 257)}};
}

void register_all() {
  benchmark::RegisterBenchmark("gemm_peak_f32", gemm_peak)->UseRealTime();
  for (const Workload& workload : workloads()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        const std::string name = "attention/" + workload.name + "/" + std::string(name_of(dtype)) +
                                 (direction == Direction::forward ? "/forward" : "/backward");
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          Run(workload, dtype).measure(state, direction);
        })->UseRealTime();
      }
    }
  }
}

}  // namespace
}  // namespace orchard

int main(int argc, char** argv) {
  orchard::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
