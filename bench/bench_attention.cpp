// GFLOP/s of attention, and the ratio to the machine's fp32 GEMM peak: the time that a large
// product of as many FLOPs takes, measured in turn. FLOPs are those of the visible query-key pairs
// alone: 4·head_dim forward, 10·head_dim backward.
#include <dnnl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_main.h"
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

// A product of about `flops` FLOPs on square-ish matrices: n = k = 1024, m to fit.
class PeakProduct {
 public:
  explicit PeakProduct(double flops)
      : m_(std::max<std::int64_t>(64, std::llround(flops / (2.0 * side * side)))),
        a_(static_cast<std::size_t>(m_ * side), 1.0f),
        b_(static_cast<std::size_t>(side * side), 1.0f),
        c_(static_cast<std::size_t>(m_ * side)) {}

  void operator()() {
    dnnl_sgemm('N', 'N', m_, side, side, 1, a_.data(), side, b_.data(), side, 0, c_.data(), side);
  }

 private:
  static constexpr std::int64_t side = 1024;
  std::int64_t m_;
  std::vector<float> a_, b_, c_;
};

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
    double pairs = 0;
    for (const double n : workload_.lengths) {
      pairs += workload_.mask == Mask::full ? n * n : n * (n + 1) / 2;
    }
    const bool forward = direction == Direction::forward;
    const double flops =
        pairs * static_cast<double>(workload_.heads * workload_.head_dim) * (forward ? 4 : 10);
    PeakProduct peak(flops);
    bench::measure(state, {.flops = flops},
                   [&] {
                     forward ? run(*stream_, forward_) : run(*stream_, backward_);
                     stream_->synchronize();
                   },
                   {.name = "GEMM peak", .call = [&] { peak(); }});
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

const bool registered = [] {
  for (const Workload& workload : workloads()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const Direction direction : {Direction::forward, Direction::backward}) {
        const std::string name = "attention/" + workload.name + "/" + std::string(name_of(dtype)) +
                                 (direction == Direction::forward ? "/forward" : "/backward");
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          Run(workload, dtype).measure(state, direction);
        })->UseManualTime();
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace orchard
