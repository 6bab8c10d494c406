// Squeeze-and-excitation's scaling on the CPU. The sigmoids, one per image and channel, are
// computed once into workspace; then each pixel is a multiplication. The gradient of a scale sums
// over the image's pixels in blocks of fixed size. Bytes: 2·e per element forward, 3·e backward; 1
// and 3 FLOPs. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/activation/excite_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include "kernels/activation/activation.h"
#include "kernels/activation/activation_cpu.h"
#include "kernels/core/visit.h"
#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/reduction.h"
#include "kernels/device/device.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

template <class T>
void sigmoids(const ConstTensor& scale, float* out) {
  const T* const in = scale.data<T>();
  parallel_vectors(scale.numel(), [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    store(sigmoid<float>(load(in + i, n)), out + i, n);
  });
}

// Pixels [begin, end), counted through all images.
template <class T>
void forward_pixels(const ExciteForward& op, const float* factors, std::int64_t begin,
                    std::int64_t end) {
  const std::int64_t pixels = op.x.dim(1), channels = op.x.dim(2);
  for (std::int64_t pixel = begin; pixel < end; ++pixel) {
    const T* const x = row_of<T>(op.x, pixel, channels);
    const float* const factor = factors + pixel / pixels * channels;
    T* const y = row_of<T>(op.y, pixel, channels);
    for_each_vector(channels, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Mul(load(x + i, n), load(factor + i, n)), y + i, n);
    });
  }
}

// Adds Σ d_y·x over these pixels of one image to `partial`.
template <class T>
void backward_pixels(const ExciteBackward& op, const float* factor, std::int64_t begin,
                     std::int64_t end, float* partial) {
  const std::int64_t channels = op.x.dim(2);
  for (std::int64_t pixel = begin; pixel < end; ++pixel) {
    const T* const x = row_of<T>(op.x, pixel, channels);
    const T* const d_y = row_of<T>(op.d_y, pixel, channels);
    T* const d_x = row_of<T>(op.d_x, pixel, channels);
    for_each_vector(channels, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      const Vector d = load(d_y + i, n);
      store(hn::MulAdd(d, load(x + i, n), load(partial + i, n)), partial + i, n);
      store(hn::Mul(d, load(factor + i, n)), d_x + i, n);
    });
  }
}

// d_scale = σ·(1 - σ)·(sum of the image's partial sums).
template <class T>
void backward_scale(const ExciteBackward& op, std::int64_t image, const float* factor,
                    const float* partials, std::int64_t blocks) {
  const std::int64_t channels = op.x.dim(2);
  T* const d_scale = row_of<T>(op.d_scale, image, channels);
  for_each_vector(channels, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    Vector total = zero();
    for (std::int64_t block = 0; block < blocks; ++block) {
      total = hn::Add(total, load(partials + block * channels + i, n));
    }
    const Vector s = load(factor + i, n);
    store(hn::Mul(total, hn::NegMulAdd(s, s, s)), d_scale + i, n);
  });
}

template <class T>
void forward(Stream& stream, const ExciteForward& op) {
  auto* const factors = reinterpret_cast<float*>(
      stream.workspace(static_cast<std::size_t>(op.scale.numel()) * sizeof(float)));
  sigmoids<T>(op.scale, factors);
  parallel_for(op.x.dim(0) * op.x.dim(1), 16, [&](std::int64_t begin, std::int64_t end) {
    forward_pixels<T>(op, factors, begin, end);
  });
}

template <class T>
void backward(Stream& stream, const ExciteBackward& op) {
  const std::int64_t images = op.x.dim(0), pixels = op.x.dim(1), channels = op.x.dim(2);
  const RowBlocks blocks = row_blocks(pixels);
  const std::int64_t sums = images * blocks.count * channels;
  auto* const partials = reinterpret_cast<float*>(
      stream.workspace(static_cast<std::size_t>(sums + images * channels) * sizeof(float)));
  float* const factors = partials + sums;
  sigmoids<T>(op.scale, factors);
  parallel_for(images * blocks.count, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t image = i / blocks.count, block = i % blocks.count;
      const std::int64_t begin = image * pixels + block * blocks.rows;
      const std::int64_t end = image * pixels + std::min((block + 1) * blocks.rows, pixels);
      float* const partial = partials + i * channels;
      std::fill_n(partial, channels, 0.0f);
      backward_pixels<T>(op, factors + image * channels, begin, end, partial);
    }
  });
  parallel_for(images, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t image = first; image < last; ++image) {
      backward_scale<T>(op, image, factors + image * channels,
                        partials + image * blocks.count * channels, blocks.count);
    }
  });
}

void excite_forward(Stream& stream, const ExciteForward& op) {
  visit_float(op.x.dtype(), [&]<class T>(T) { forward<T>(stream, op); });
}
void excite_backward(Stream& stream, const ExciteBackward& op) {
  visit_float(op.x.dtype(), [&]<class T>(T) { backward<T>(stream, op); });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(excite_forward);
HWY_EXPORT(excite_backward);

void register_excite(OperationTable& table) {
  table.add<ExciteForward>([](Stream& s, const ExciteForward& op) {
    HWY_DYNAMIC_DISPATCH(excite_forward)(s, op);
  });
  table.add<ExciteBackward>([](Stream& s, const ExciteBackward& op) {
    HWY_DYNAMIC_DISPATCH(excite_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
