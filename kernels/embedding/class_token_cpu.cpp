// The class token's way in and out on the CPU. Bound by memory: each element is read once and
// written once. Position gradients add the images in order, a piece of the table at a time, while the
// same piece of each image is copied and so in cache.
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

// y = a + b.
template <class A, class B>
void add(const A* a, const B* b, B* y, std::int64_t n) {
  for_each_vector(n, [&](std::int64_t i, std::int64_t count) HWY_ATTR {
    store(hn::Add(load(a + i, count), load(b + i, count)), y + i, count);
  });
}

// y = a, or a + b where b is given.
template <class T>
void add_row(const T* a, const T* b, T* y, std::int64_t width) {
  if (b) return add(a, b, y, width);
  std::memcpy(y, a, static_cast<std::size_t>(width) * sizeof(T));
}

// Copies the gradients of the patches of each image, `size` elements, and adds them to `total`, unless
// that is null.
template <class T>
struct PatchGradients {
  std::int64_t images, size;
  const T* from;
  std::int64_t from_stride;  // between images
  T* to;
  std::int64_t to_stride;
  float* total;
};

template <class T>
void copy_and_add(const PatchGradients<T>& op) {
  // Source, target and total fit the L2 cache; shorter runs wait for memory, as the hardware finds out
  // too late what comes next.
  constexpr std::int64_t piece = 32768;
  parallel_for(op.size, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t first = begin; first < end; first += piece) {
      const std::int64_t size = std::min(piece, end - first);
      for (std::int64_t image = 0; image < op.images; ++image) {
        const T* const from = op.from + image * op.from_stride + first;
        std::memcpy(op.to + image * op.to_stride + first, from,
                    static_cast<std::size_t>(size) * sizeof(T));
        if (op.total) add(from, op.total + first, op.total + first, size);
      }
    }
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
  float* const d_positions = op.d_positions.data<float>();
  copy_and_add(PatchGradients<T>{.images = images,
                                 .size = (rows - 1) * width,
                                 .from = d_y + width,
                                 .from_stride = rows * width,
                                 .to = op.d_patches.data<T>(),
                                 .to_stride = (rows - 1) * width,
                                 .total = d_positions ? d_positions + width : nullptr});
  if (!d_positions) return;
  for (std::int64_t image = 0; image < images; ++image) {
    for (float* const total : {d_positions, op.d_class_token.data<float>()})
      add(d_y + image * rows * width, total, total, width);
  }
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
  T* const d_x = op.d_x.data<T>();
  for (std::int64_t image = 0; image < images; ++image)
    std::fill_n(d_x + image * (rows + 1) * width, width, T{});
  copy_and_add(PatchGradients<T>{.images = images,
                                 .size = rows * width,
                                 .from = op.d_y.data<T>(),
                                 .from_stride = rows * width,
                                 .to = d_x + width,
                                 .to_stride = (rows + 1) * width,
                                 .total = op.d_positions.data<float>()});
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
