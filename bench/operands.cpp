#include "bench/operands.h"

#include <chrono>
#include <cstring>
#include <map>

#include "kernels/cpu/parallel.h"

namespace orchard::bench {
namespace {

double seconds_of(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Bytes per second, read and written, of a copy that touches `footprint` bytes.
double copy_rate(std::size_t footprint) {
  static std::map<std::size_t, double> measured;
  double& rate = measured[footprint];
  if (rate > 0) return rate;
  const auto half = static_cast<std::int64_t>(footprint / 2);
  const Buffer from = cpu_device().allocate(footprint / 2),
               to = cpu_device().allocate(footprint / 2);
  // Both, so that no copy that counts waits for the system to hand out pages.
  std::memset(from.data(), 1, footprint / 2);
  std::memset(to.data(), 1, footprint / 2);
  double best = 1e9, total = 0;
  for (int copies = 0; copies < 5 || total < 0.3; ++copies) {
    const double seconds = seconds_of([&] {
      cpu::parallel_for(half, 4096, [&](std::int64_t begin, std::int64_t end) {
        std::memcpy(to.data() + begin, from.data() + begin, static_cast<std::size_t>(end - begin));
      });
    });
    benchmark::DoNotOptimize(to.data());
    best = std::min(best, seconds);
    total += seconds;
  }
  return rate = 2.0 * static_cast<double>(half) / best;
}

// Larger than any cache.
constexpr std::size_t main_memory = std::size_t{256} << 20;

void fill(const Tensor& tensor) {
  std::uint32_t bits = 1;
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    bits = bits * 1664525u + 1013904223u;
    const float value = static_cast<float>(bits >> 8) * 0x1p-23f - 1;
    switch (tensor.dtype()) {
      case DType::f32:
        tensor.data<float>()[i] = value;
        break;
      case DType::bf16:
        tensor.data<bf16>()[i] = to_bf16(value);
        break;
      case DType::u8:
        tensor.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(bits >> 24);
        break;
      default:
        tensor.data<std::int32_t>()[i] = static_cast<std::int32_t>(bits >> 24);
    }
  }
}

}  // namespace

Device& cpu_device() {
  static const std::unique_ptr<Device> cpu = make_cpu_device();
  return *cpu;
}

Tensor Operands::allocate(DType dtype, Shape shape) {
  const auto bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  buffers_.push_back(cpu_device().allocate(bytes));
  const Tensor tensor = buffers_.back().tensor(dtype, shape);
  fill(tensor);
  return tensor;
}

Tensor Operands::touched(DType dtype, Shape shape, int times) {
  const Tensor tensor = allocate(dtype, shape);
  footprint_ += tensor.size_bytes();
  traffic_ += tensor.size_bytes() * static_cast<std::size_t>(times);
  return tensor;
}

Tensor Operands::integers(Shape shape, const std::function<std::int64_t(std::int64_t)>& value) {
  const Tensor tensor = once(DType::i32, shape);
  for (std::int64_t i = 0; i < tensor.numel(); ++i)
    tensor.data<std::int32_t>()[i] = static_cast<std::int32_t>(value(i));
  return tensor;
}

Tensor Operands::leading_rows(DType dtype, Shape shape, std::int64_t rows) {
  const Tensor tensor = allocate(dtype, shape);
  const std::size_t bytes = tensor.slice(0, rows).size_bytes();
  footprint_ += bytes;
  traffic_ += bytes;
  return tensor;
}

void Operands::measure_call(benchmark::State& state, const std::function<void()>& call) const {
  call();
  double best = 1e9;
  for (auto _ : state) {
    const double seconds = seconds_of(call);
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  const auto bytes = static_cast<double>(traffic_);
  const double rate = bytes / best, stream_rate = copy_rate(main_memory);
  state.counters["of_copy"] = rate / copy_rate(footprint_);
  state.counters["seconds"] = best;
  state.counters["bytes"] = bytes;
  state.counters["reference_seconds"] = bytes / stream_rate;
  state.SetLabel("stream copy");
}

void add_benchmark(const std::string& name, Body body, DType dtype, Shape shape) {
  std::string title = fmt::format("{}/{}/{}", name, name_of(dtype), shape[0]);
  for (int i = 1; i < shape.rank(); ++i) title += fmt::format("x{}", shape[i]);
  benchmark::RegisterBenchmark(title.c_str(),
                               [=](benchmark::State& state) {
                                 Operands operands;
                                 body(state, operands, dtype, shape);
                               })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace orchard::bench
