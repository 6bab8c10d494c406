// Adaptive average pooling on the CPU. Forward and backward are one gather: the outputs whose bins
// hold input i of n, for m outputs, are floor(i·m/n) ... ceil((i+1)·m/n) - 1, the bin formula with
// n and m exchanged. So no two threads write one pixel, and every sum has a fixed order. Bound by
// memory: each source pixel is read by the one to four targets that it feeds, mostly from cache.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convolution/adaptive_pool_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>

#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_cpu.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Channels that one task adds up in a stack buffer: the global mean of a few images then still has
// enough tasks, and every read is a run of 1 KB.
constexpr std::int64_t pool_chunk = 256;

struct Bin {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

// The `sources` pixels of one side that target `i` of `targets` reads.
inline Bin bin_of(std::int64_t i, std::int64_t sources, std::int64_t targets) {
  return {i * sources / targets, ((i + 1) * sources + targets - 1) / targets};
}

enum class Divisor {
  target_bin,  // forward: the mean over the target's own bin
  source_bin,  // backward: each source pixel's gradient is shared by the pixels of its bin
};

struct Pool {
  ConstTensor source, extra;
  Tensor target;
  Divisor divisor;
};

// Channels [c, c + n) of target pixel (image, i, j).
template <class T>
void pool_pixel(const Pool& op, std::int64_t image, std::int64_t i, std::int64_t j, std::int64_t c,
                std::int64_t n) {
  const std::int64_t height = op.source.dim(1), width = op.source.dim(2);
  const std::int64_t out_height = op.target.dim(1), out_width = op.target.dim(2);
  const std::int64_t channels = op.target.dim(3);
  const std::int64_t pixel = (image * out_height + i) * out_width + j;
  const Bin rows = bin_of(i, height, out_height), cols = bin_of(j, width, out_width);
  float sums[pool_chunk] = {};
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    for (std::int64_t s = cols.begin; s < cols.end; ++s) {
      const std::int64_t shared =
          op.divisor == Divisor::target_bin
              ? rows.size() * cols.size()
              : bin_of(r, out_height, height).size() * bin_of(s, out_width, width).size();
      const Vector weight = set(1.0f / static_cast<float>(shared));
      const T* const from = op.source.data<T>() + ((image * height + r) * width + s) * channels + c;
      for_each_vector(n, [&](std::int64_t k, std::int64_t count) HWY_ATTR {
        store(hn::MulAdd(weight, load(from + k, count), load(sums + k, count)), sums + k, count);
      });
    }
  }
  const T* const extra = op.extra ? op.extra.data<T>() + pixel * channels + c : nullptr;
  T* const to = op.target.data<T>() + pixel * channels + c;
  for_each_vector(n, [&](std::int64_t k, std::int64_t count) HWY_ATTR {
    const Vector sum = load(sums + k, count);
    store(extra ? hn::Add(sum, load(extra + k, count)) : sum, to + k, count);
  });
}

template <class T>
void pool(const Pool& op) {
  const std::int64_t height = op.target.dim(1), width = op.target.dim(2);
  const std::int64_t channels = op.target.dim(3);
  const std::int64_t chunks = (channels + pool_chunk - 1) / pool_chunk;
  parallel_for(op.target.dim(0) * height * width * chunks, 4,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t task = begin; task < end; ++task) {
                   const std::int64_t pixel = task / chunks, c = task % chunks * pool_chunk;
                   pool_pixel<T>(op, pixel / width / height, pixel / width % height, pixel % width,
                                 c, std::min(pool_chunk, channels - c));
                 }
               });
}

void pool_any(const Pool& op) {
  return op.target.dtype() == DType::f32 ? pool<float>(op) : pool<bf16>(op);
}

void adaptive_pool_forward(Stream&, const AdaptiveAveragePoolForward& op) {
  pool_any({.source = op.x, .extra = {}, .target = op.y, .divisor = Divisor::target_bin});
}

void adaptive_pool_backward(Stream&, const AdaptiveAveragePoolBackward& op) {
  pool_any(
      {.source = op.d_y, .extra = op.d_extra, .target = op.d_x, .divisor = Divisor::source_bin});
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(adaptive_pool_forward);
HWY_EXPORT(adaptive_pool_backward);

void register_adaptive_pool(OperationTable& table) {
  table.add<AdaptiveAveragePoolForward>([](Stream& s, const AdaptiveAveragePoolForward& op) {
    HWY_DYNAMIC_DISPATCH(adaptive_pool_forward)(s, op);
  });
  table.add<AdaptiveAveragePoolBackward>([](Stream& s, const AdaptiveAveragePoolBackward& op) {
    HWY_DYNAMIC_DISPATCH(adaptive_pool_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
