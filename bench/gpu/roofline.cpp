#include "bench/gpu/roofline.h"

#include <algorithm>

#include "kernels/gemm/gemm.h"

namespace orchard::bench {
namespace {

double product_tflops(CudaBench& bench, DType dtype, std::int64_t side) {
  const Gemm op{.a = bench.random(dtype, {side, side}),
                .b = bench.random(dtype, {side, side}, 0.02f),
                .c = bench.zeros(dtype, {side, side}),
                .transpose_b = Transpose::yes};
  const auto library = [&] { return bench.run_library(op); };
  double us = bench.median_us([&] { run(bench.stream(), op); });
  if (library()) us = std::min(us, bench.median_us(library));
  bench.forget_operands();
  const auto n = static_cast<double>(side);
  return 2 * n * n * n / us * 1e-6;
}

double copy_gbs(CudaBench& bench) {
  constexpr std::int64_t bytes = std::int64_t{1} << 30;
  const Tensor from = bench.bytes(bytes), to = bench.bytes(bytes);
  const double us = bench.median_us([&] { bench.stream().copy(to, from); });
  bench.forget_operands();
  return 2.0 * static_cast<double>(bytes) / us * 1e-3;
}

}  // namespace

Roofline Roofline::measure(CudaBench& bench) {
  return {.bf16_tflops = std::max(product_tflops(bench, DType::bf16, 4096),
                                  product_tflops(bench, DType::bf16, 8192)),
          .f32_tflops = product_tflops(bench, DType::f32, 4096),
          .gbs = copy_gbs(bench)};
}

double Roofline::share(const GpuCase& test, double us) const {
  const double tflops = test.arithmetic == DType::bf16 ? bf16_tflops : f32_tflops;
  return std::max(test.flops / tflops * 1e-6, test.bytes / gbs * 1e-3) / us;
}

}  // namespace orchard::bench
