// The class token's way in and out on the CPU. Bound by memory: each element is read once and
// written once. Position gradients walk the images in order for one vector of columns at a time, so
// the sum stays in a register and needs no partial sums.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/embedding/class_token_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cstring>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"
#include "kernels/embedding/embedding.h"
#include "kernels/embedding/embedding_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

constexpr std::int64_t row_grain = 16;

// y = a, or a + b where b is given.
template <class T>
void add_row(const T* a, const T* b, T* y, std::int64_t width) {
  if (!b) {
    std::memcpy(y, a, static_cast<std::size_t>(width) * sizeof(T));
    return;
  }
  for_each_vector(width, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    store(hn::Add(load(a + i, n), load(b + i, n)), y + i, n);
  });
}

// total += the sum over images of the row that starts at d_y, d_y + stride, ...; `total` and
// `also` (may be null) receive the same sum.
template <class T>
void add_over_images(const T* d_y, std::int64_t images, std::int64_t stride, std::int64_t width,
                     float* total, float* also) {
  for_each_vector(width, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    Vector over_images = zero();
    for (std::int64_t image = 0; image < images; ++image) {
      over_images = hn::Add(over_images, load(d_y + image * stride + i, n));
    }
    store(hn::Add(load(total + i, n), over_images), total + i, n);
    if (also) store(hn::Add(load(also + i, n), over_images), also + i, n);
  });
}

template <class T>
void prepend(const PrependClassForward& op) {
  const std::int64_t images = op.y.dim(0), rows = op.y.dim(1), width = op.y.dim(2);
  parallel_for(images * rows, row_grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t image = i / rows, row = i % rows;
      const T* const token = row == 0
                                 ? op.class_token.data<T>()
                                 : op.patches.data<T>() + (image * (rows - 1) + row - 1) * width;
      add_row(token, op.positions.data<T>() + row * width, op.y.data<T>() + i * width, width);
    }
  });
}

template <class T>
void prepend_backward(const PrependClassBackward& op) {
  const std::int64_t images = op.d_y.dim(0), rows = op.d_y.dim(1), width = op.d_y.dim(2);
  const T* const d_y = op.d_y.data<T>();
  const auto image_bytes = static_cast<std::size_t>((rows - 1) * width) * sizeof(T);
  parallel_for(images, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t image = begin; image < end && image_bytes > 0; ++image) {
      std::memcpy(op.d_patches.data<T>() + image * (rows - 1) * width,
                  d_y + (image * rows + 1) * width, image_bytes);
    }
  });
  if (!op.d_positions) return;
  parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      add_over_images(d_y + row * width, images, rows * width, width,
                      op.d_positions.data<float>() + row * width,
                      row == 0 ? op.d_class_token.data<float>() : nullptr);
    }
  });
}

template <class T>
void drop(const DropClassForward& op) {
  const std::int64_t images = op.y.dim(0), rows = op.y.dim(1), width = op.y.dim(2);
  const T* const positions = op.positions.data<T>();
  parallel_for(images * rows, row_grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t image = i / rows, row = i % rows;
      add_row(op.x.data<T>() + (image * (rows + 1) + row + 1) * width,
              positions ? positions + row * width : nullptr, op.y.data<T>() + i * width, width);
    }
  });
}

template <class T>
void drop_backward(const DropClassBackward& op) {
  const std::int64_t images = op.d_y.dim(0), rows = op.d_y.dim(1), width = op.d_y.dim(2);
  const T* const d_y = op.d_y.data<T>();
  parallel_for(images, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t image = begin; image < end; ++image) {
      T* const d_x = op.d_x.data<T>() + image * (rows + 1) * width;
      std::fill_n(d_x, width, T{});
      if (rows == 0) continue;
      std::memcpy(d_x + width, d_y + image * rows * width,
                  static_cast<std::size_t>(rows * width) * sizeof(T));
    }
  });
  if (!op.d_positions) return;
  parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      add_over_images(d_y + row * width, images, rows * width, width,
                      op.d_positions.data<float>() + row * width, static_cast<float*>(nullptr));
    }
  });
}

void prepend_class_forward(Stream&, const PrependClassForward& op) {
  return op.y.dtype() == DType::f32 ? prepend<float>(op) : prepend<bf16>(op);
}
void prepend_class_backward(Stream&, const PrependClassBackward& op) {
  return op.d_y.dtype() == DType::f32 ? prepend_backward<float>(op) : prepend_backward<bf16>(op);
}
void drop_class_forward(Stream&, const DropClassForward& op) {
  return op.y.dtype() == DType::f32 ? drop<float>(op) : drop<bf16>(op);
}
void drop_class_backward(Stream&, const DropClassBackward& op) {
  return op.d_y.dtype() == DType::f32 ? drop_backward<float>(op) : drop_backward<bf16>(op);
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(prepend_class_forward);
HWY_EXPORT(prepend_class_backward);
HWY_EXPORT(drop_class_forward);
HWY_EXPORT(drop_class_backward);

void register_class_token(OperationTable& table) {
  table.add<PrependClassForward>([](Stream& s, const PrependClassForward& op) {
    HWY_DYNAMIC_DISPATCH(prepend_class_forward)(s, op);
  });
  table.add<PrependClassBackward>([](Stream& s, const PrependClassBackward& op) {
    HWY_DYNAMIC_DISPATCH(prepend_class_backward)(s, op);
  });
  table.add<DropClassForward>([](Stream& s, const DropClassForward& op) {
    HWY_DYNAMIC_DISPATCH(drop_class_forward)(s, op);
  });
  table.add<DropClassBackward>([](Stream& s, const DropClassBackward& op) {
    HWY_DYNAMIC_DISPATCH(drop_class_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
