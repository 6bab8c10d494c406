// Measuring operations that memory bounds, each beside two copies measured in the same process.
//
// GB/s counts every byte that the operation must read or write once, at the best iteration, which a
// busy machine disturbs least.
//   x stream copy  its quotient with a copy of 256 MiB: what main memory delivers, as STREAM counts
//                  it
//   of_copy        its quotient with a copy as large as all operands of the operation together, so
//                  that both sit in the same level of the memory hierarchy; in the caches the copy
//                  runs at their speed, which arithmetic cannot follow
// A copy is memcpy split over the same threads.
#pragma once

#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/device/device.h"

namespace orchard::bench {

// The CPU, with OMP_NUM_THREADS threads.
Device& cpu_device();

// The operands of one benchmark, and how often each of them crosses memory.
class Operands {
 public:
  // Random values in [-1, 1); small positive numbers where they stand for integers.
  Tensor touched(DType dtype, Shape shape, int times);
  Tensor once(DType dtype, Shape shape) { return touched(dtype, shape, 1); }
  Tensor in_place(DType dtype, Shape shape) { return touched(dtype, shape, 2); }
  // value(i) for every i.
  Tensor integers(Shape shape, const std::function<std::int64_t(std::int64_t)>& value);
  // A buffer of which the operation touches only `rows` rows, once.
  Tensor leading_rows(DType dtype, Shape shape, std::int64_t rows);

  template <class Operation>
  void measure(benchmark::State& state, const Operation& op) {
    const auto stream = cpu_device().make_stream();
    measure_call(state, [&] {
      run(*stream, op);
      stream->synchronize();
    });
  }

 private:
  Tensor allocate(DType dtype, Shape shape);
  void measure_call(benchmark::State& state, const std::function<void()>& call) const;

  std::vector<Buffer> buffers_;
  std::size_t footprint_ = 0, traffic_ = 0;
};

using Body = void (*)(benchmark::State&, Operands&, DType, Shape);

// One line: "name/dtype/2x3".
void add_benchmark(const std::string& name, Body body, DType dtype, Shape shape);

inline void add_benchmark_of_both(const std::string& name, Body body, Shape shape) {
  for (const DType dtype : {DType::f32, DType::bf16}) add_benchmark(name, body, dtype, shape);
}

}  // namespace orchard::bench
