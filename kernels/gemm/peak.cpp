#include "kernels/gemm/peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/gemm/gemm.h"

namespace orchard {
namespace {

struct Size {
  std::int64_t m, n, k;
};

double seconds_of(Stream& stream, const Gemm& gemm) {
  const auto start = std::chrono::steady_clock::now();
  run(stream, gemm);
  stream.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Values of all bit patterns that a training step has: zeros draw less power, and would flatter.
void fill(Stream& stream, const Buffer& buffer, DType dtype) {
  const auto count = static_cast<std::int64_t>(buffer.size_bytes() / size_of(dtype));
  std::vector<float> values(static_cast<std::size_t>(count));
  std::vector<bf16> halves(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i * 7919 % 2003) / 1001.0f - 1.0f;
    halves[i] = to_bf16(values[i]);
  }
  void* const host = dtype == DType::f32 ? static_cast<void*>(values.data()) : halves.data();
  stream.copy(buffer.tensor(dtype, {count}), Tensor(host, dtype, {count}, DeviceKind::cpu));
  stream.synchronize();
}

}  // namespace

double measure_gemm_peak(Stream& stream, DType dtype) {
  constexpr int repetitions = 4;
  double best = 0;
  std::vector<Size> sizes{{2048, 2048, 2048}, {4096, 1024, 1024}, {4096, 512, 2048}};
  // A GPU needs more to be filled, and a core would take minutes for it.
  if (stream.device().kind() == DeviceKind::cuda) sizes.push_back({8192, 8192, 8192});
  for (const auto [m, n, k] : sizes) {
    const auto allocate = [&](std::int64_t rows, std::int64_t cols) {
      return stream.device().allocate(static_cast<std::size_t>(rows * cols) * size_of(dtype));
    };
    const Buffer a = allocate(m, k), b = allocate(n, k), c = allocate(m, n);
    const Gemm gemm{.a = a.tensor(dtype, {m, k}),
                    .b = b.tensor(dtype, {n, k}),
                    .c = c.tensor(dtype, {m, n}),
                    .transpose_b = Transpose::yes};
    fill(stream, a, dtype);
    fill(stream, b, dtype);
    seconds_of(stream, gemm);  // warms up
    for (int i = 0; i < repetitions; ++i) {
      const double flops = 2.0 * static_cast<double>(m * n) * static_cast<double>(k);
      best = std::max(best, flops / seconds_of(stream, gemm));
    }
  }
  return best;
}

}  // namespace orchard
