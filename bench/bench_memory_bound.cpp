// Operations that memory bounds, each beside two copies measured in the same process.
//
// GB/s counts every byte the operation must read or write once (AdaFactor: its readings of the
// gradient, as its file says), at the best iteration, which a busy machine disturbs least.
//   x stream copy  its quotient with a copy of 256 MiB: what main memory delivers, as STREAM counts it.
//   of_copy        its quotient with a copy as large as all operands of the operation together, so
//                  that both sit in the same level of the memory hierarchy; in the caches the copy
//                  runs at their speed, which arithmetic cannot follow.
// A copy is memcpy split over the same threads.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/loss.h"
#include "kernels/norm/norm.h"
#include "kernels/optimizer/optimizer.h"

namespace orchard {
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
  const std::vector<char> from(static_cast<std::size_t>(half), 1);
  std::vector<char> to(static_cast<std::size_t>(half));
  double best = 1e9, total = 0;
  while (total < 0.3) {
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

Device& device() {
  static const std::unique_ptr<Device> cpu = make_cpu_device();
  return *cpu;
}

// The operands of one benchmark, and how often each of them crosses memory.
class Operands {
 public:
  Tensor touched(DType dtype, Shape shape, int times) {
    buffers_.push_back(device().allocate(static_cast<std::size_t>(shape.numel()) * size_of(dtype)));
    const Tensor tensor = buffers_.back().tensor(dtype, shape);
    fill(tensor);
    footprint_ += tensor.size_bytes();
    traffic_ += tensor.size_bytes() * static_cast<std::size_t>(times);
    return tensor;
  }
  Tensor once(DType dtype, Shape shape) { return touched(dtype, shape, 1); }
  Tensor in_place(DType dtype, Shape shape) { return touched(dtype, shape, 2); }

  template <class Operation>
  void measure(benchmark::State& state, const Operation& op) {
    const auto stream = device().make_stream();
    const auto body = [&] {
      run(*stream, op);
      stream->synchronize();
    };
    body();
    double best = 1e9;
    for (auto _ : state) {
      const double seconds = seconds_of(body);
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

 private:
  // Values in [-1, 1), positive and small where they stand for integers.
  static void fill(const Tensor& tensor) {
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
        default:
          tensor.data<std::int32_t>()[i] = static_cast<std::int32_t>(bits >> 24);
      }
    }
  }

  std::vector<Buffer> buffers_;
  std::size_t footprint_ = 0, traffic_ = 0;
};

using Body = void (*)(benchmark::State&, Operands&, DType, Shape);

constexpr DType f32 = DType::f32;

const std::vector<std::pair<const char*, Body>> pointwise = {
    {"RmsNormForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, RmsNormForward{.x = t.once(e, s),
                                       .weight = t.once(e, {s[1]}),
                                       .y = t.once(e, s),
                                       .inverse_rms = t.once(f32, {s[0]})});
     }},
    {"RmsNormForwardResidual",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, RmsNormForward{.x = t.once(e, s),
                                       .delta = t.once(e, s),
                                       .weight = t.once(e, {s[1]}),
                                       .sum = t.once(e, s),
                                       .y = t.once(e, s),
                                       .inverse_rms = t.once(f32, {s[0]})});
     }},
    {"RmsNormBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, RmsNormBackward{.x = t.once(e, s),
                                        .weight = t.once(e, {s[1]}),
                                        .inverse_rms = t.once(f32, {s[0]}),
                                        .d_y = t.once(e, s),
                                        .d_sum = t.once(e, s),
                                        .d_x = t.once(e, s),
                                        .d_weight = t.in_place(f32, {s[1]})});
     }},
    {"LayerNormForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, LayerNormForward{.x = t.once(e, s),
                                         .weight = t.once(e, {s[1]}),
                                         .bias = t.once(e, {s[1]}),
                                         .y = t.once(e, s),
                                         .mean = t.once(f32, {s[0]}),
                                         .inverse_std = t.once(f32, {s[0]})});
     }},
    {"LayerNormBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, LayerNormBackward{.x = t.once(e, s),
                                          .weight = t.once(e, {s[1]}),
                                          .mean = t.once(f32, {s[0]}),
                                          .inverse_std = t.once(f32, {s[0]}),
                                          .d_y = t.once(e, s),
                                          .d_x = t.once(e, s),
                                          .d_weight = t.in_place(f32, {s[1]}),
                                          .d_bias = t.in_place(f32, {s[1]})});
     }},
    {"QkNormRopeForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape heads = {s[0], s[1] / 64, 64};
       t.measure(state, QkNormRopeForward{.x = t.once(e, heads),
                                          .weight = t.once(e, {64}),
                                          .rotation = t.once(f32, {256, 64}),
                                          .positions = t.once(DType::i32, {s[0]}),
                                          .y = t.once(e, heads),
                                          .inverse_rms = t.once(f32, {s[0], s[1] / 64})});
     }},
    {"QkNormRopeBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape heads = {s[0], s[1] / 64, 64};
       t.measure(state, QkNormRopeBackward{.x = t.once(e, heads),
                                           .weight = t.once(e, {64}),
                                           .rotation = t.once(f32, {256, 64}),
                                           .positions = t.once(DType::i32, {s[0]}),
                                           .inverse_rms = t.once(f32, {s[0], s[1] / 64}),
                                           .d_y = t.once(e, heads),
                                           .d_x = t.once(e, heads),
                                           .d_weight = t.in_place(f32, {64})});
     }},
    {"SiluForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state,
                 ActivationForward{.kind = Activation::silu, .x = t.once(e, s), .y = t.once(e, s)});
     }},
    {"SiluBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, ActivationBackward{.kind = Activation::silu,
                                           .x = t.once(e, s),
                                           .d_y = t.once(e, s),
                                           .d_x = t.once(e, s)});
     }},
    {"SwiGluForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, SwiGluForward{.gate = t.once(e, s), .up = t.once(e, s), .y = t.once(e, s)});
     }},
    {"SwiGluBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, SwiGluBackward{.gate = t.once(e, s),
                                       .up = t.once(e, s),
                                       .d_y = t.once(e, s),
                                       .d_gate = t.once(e, s),
                                       .d_up = t.once(e, s),
                                       .y = t.once(e, s)});
     }},
    {"ExciteForward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape images = {16, s[0] / 16, s[1]};
       t.measure(state, ExciteForward{.x = t.once(e, images),
                                      .scale = t.once(e, {16, s[1]}),
                                      .y = t.once(e, images)});
     }},
    {"ExciteBackward",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       const Shape images = {16, s[0] / 16, s[1]};
       t.measure(state, ExciteBackward{.x = t.once(e, images),
                                       .scale = t.once(e, {16, s[1]}),
                                       .d_y = t.once(e, images),
                                       .d_x = t.once(e, images),
                                       .d_scale = t.once(e, {16, s[1]})});
     }},
    {"Add",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, Add{.a = t.once(e, s), .b = t.once(e, s), .y = t.once(e, s)});
     }},
    {"AddRow",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, Add{.a = t.once(e, s), .b = t.once(e, {s[1]}), .y = t.once(e, s)});
     }},
    {"ConvertToOther",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, Convert{.x = t.once(e, s), .y = t.once(e == f32 ? DType::bf16 : f32, s)});
     }},
    {"Scale", [](benchmark::State& state, Operands& t, DType e,
                 Shape s) { t.measure(state, Scale{.x = t.in_place(e, s), .factor = -1}); }},
    {"ColumnSum",
     [](benchmark::State& state, Operands& t, DType e, Shape s) {
       t.measure(state, ColumnSum{.x = t.once(e, s), .y = t.in_place(f32, {s[1]})});
     }},
};

void cross_entropy(benchmark::State& state, Operands& t, DType e, Shape s) {
  t.measure(state, CrossEntropy{.logits = t.once(f32, s),
                                .targets = t.once(DType::i32, {s[0]}),
                                .losses = t.once(f32, {s[0]}),
                                .d_logits = t.once(e, s)});
}

void sum_of_squares(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, SumOfSquares{.x = t.once(f32, s), .result = t.once(f32, {1})});
}

void adamw(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, AdamW{.weights = t.in_place(f32, s),
                         .gradients = t.once(f32, s),
                         .m = t.in_place(f32, s),
                         .v = t.in_place(f32, s),
                         .copy = t.once(DType::bf16, s),
                         .lr = 1e-6f});
}

void adafactor(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, AdaFactor{.weights = t.in_place(f32, s),
                             .gradients = t.touched(f32, s, 3),
                             .v_row = t.in_place(f32, {s[0]}),
                             .v_col = t.in_place(f32, {s[1]}),
                             .copy = t.once(DType::bf16, s),
                             .lr = 1e-6f});
}

void adafactor_full(benchmark::State& state, Operands& t, DType, Shape s) {
  t.measure(state, AdaFactor{.weights = t.in_place(f32, s),
                             .gradients = t.touched(f32, s, 2),
                             .v = t.touched(f32, s, 3),
                             .copy = t.once(DType::bf16, s),
                             .lr = 1e-6f});
}

void add_benchmark(const std::string& name, Body body, DType dtype, Shape shape) {
  const std::string title = fmt::format("{}/{}/{}x{}", name, name_of(dtype), shape[0], shape[1]);
  benchmark::RegisterBenchmark(title.c_str(),
                               [=](benchmark::State& state) {
                                 Operands operands;
                                 body(state, operands, dtype, shape);
                               })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

const bool registered = [] {
  for (const auto& [name, body] : pointwise) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t cols : {512, 1408}) add_benchmark(name, body, dtype, {4096, cols});
    }
  }
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t vocab : {8192, 49152}) {
      add_benchmark("CrossEntropy", cross_entropy, dtype, {256, vocab});
    }
  }
  // As many parameters as the `tiny` preset has: 24.8M.
  const Shape model = {17614, 1408};
  add_benchmark("SumOfSquares", sum_of_squares, f32, model);
  add_benchmark("AdamW", adamw, f32, model);
  add_benchmark("AdaFactor", adafactor, f32, model);
  add_benchmark("AdaFactorUnfactored", adafactor_full, f32, model);
  benchmark::AddCustomContext("threads", std::to_string(cpu::thread_count()));
  return true;
}();

}  // namespace
}  // namespace orchard
