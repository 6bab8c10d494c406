#include "bench/gpu/gpu_bench.h"

#include <algorithm>
#include <random>

namespace orchard::bench {
namespace {

constexpr std::size_t pattern_elements = std::size_t{1} << 22;

}  // namespace

Tensor GpuBench::allocate(DType dtype, const Shape& shape) {
  buffers_.push_back(device_->allocate(static_cast<std::size_t>(shape.numel()) * size_of(dtype)));
  return buffers_.back().tensor(dtype, shape);
}

// Making numbers takes the host longer than the GPU takes to compute with them: all operands are of one
// pattern, each from another place on.
const std::vector<std::byte>& GpuBench::pattern(DType dtype, float scale) {
  std::vector<std::byte>& pattern = patterns_[{dtype, scale}];
  if (!pattern.empty()) return pattern;
  pattern.resize(pattern_elements * size_of(dtype));
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(0, scale);
  for (std::size_t i = 0; i < pattern_elements; ++i) {
    const float value = normal(engine);
    if (dtype == DType::f32) {
      reinterpret_cast<float*>(pattern.data())[i] = value;
    } else {
      reinterpret_cast<bf16*>(pattern.data())[i] = to_bf16(value);
    }
  }
  return pattern;
}

Tensor GpuBench::random(DType dtype, const Shape& shape, float scale) {
  const std::vector<std::byte>& numbers = pattern(dtype, scale);
  const Tensor out = allocate(dtype, shape);
  const Tensor flat = out.reshape({shape.numel()});
  std::size_t from = buffers_.size() * 99991 % pattern_elements;
  for (std::int64_t at = 0; at < flat.numel();) {
    const auto count =
        std::min(static_cast<std::int64_t>(pattern_elements - from), flat.numel() - at);
    stream_->copy(flat.slice(at, count), ConstTensor(numbers.data() + from * size_of(dtype), dtype,
                                                     {count}, DeviceKind::cpu));
    at += count;
    from = 0;
  }
  stream_->synchronize();
  return out;
}

Tensor GpuBench::integers(const std::vector<std::int32_t>& values) {
  return integers(values, {static_cast<std::int64_t>(values.size())});
}

Tensor GpuBench::integers(const std::vector<std::int32_t>& values, const Shape& shape) {
  const Tensor out = allocate(DType::i32, shape);
  stream_->copy(out, ConstTensor(values.data(), DType::i32, shape, DeviceKind::cpu));
  stream_->synchronize();
  return out;
}

Tensor GpuBench::zeros(DType dtype, const Shape& shape) {
  const Tensor out = allocate(dtype, shape);
  stream_->fill_zero(out);
  return out;
}

std::vector<GpuCase> gpu_cases(const std::string& filter) {
  std::vector<GpuCase> all;
  for (auto* const make : {gemm_cases, expert_cases, attention_cases, moe_cases, exchange_cases,
                           table_cases, picture_cases, row_cases, loss_cases, optimizer_cases}) {
    for (GpuCase& test : make()) {
      if (test.name.find(filter) != std::string::npos) all.push_back(std::move(test));
    }
  }
  return all;
}

}  // namespace orchard::bench
