// A tensor is a view: address, element type, shape, and the kind of device that owns the memory.
// It owns nothing, is dense and row-major, and copies like a pointer. The memory may be a GPU's:
// host code must not follow `data()` unless `device()` is DeviceKind::cpu and the stream that wrote
// it has been synchronised. An empty tensor (default-constructed) stands for an absent optional
// operand.
#pragma once

#include <cstdint>
#include <string_view>
#include <type_traits>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/core/shape.h"

namespace orchard {

enum class DeviceKind : std::uint8_t { cpu, cuda, simt };

constexpr std::string_view name_of(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::cpu:
      return "cpu";
    case DeviceKind::cuda:
      return "cuda";
    case DeviceKind::simt:
      return "simt";
  }
  return "?";
}

template <class Void>
class BasicTensor {
  static constexpr bool is_const = std::is_const_v<Void>;

 public:
  BasicTensor() = default;
  BasicTensor(Void* data, DType dtype, Shape shape, DeviceKind device)
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}

  // A mutable view is usable wherever a constant one is asked for.
  template <class Other>
  requires(is_const && !std::is_const_v<Other>)
      BasicTensor(const BasicTensor<Other>& other)  // NOLINT(google-explicit-constructor)
      : BasicTensor(other.raw(), other.dtype(), other.shape(), other.device()) {}

  explicit operator bool() const { return data_ != nullptr; }
  Void* raw() const { return data_; }
  DType dtype() const { return dtype_; }
  DeviceKind device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  std::int64_t dim(int i) const { return shape_[i]; }
  std::int64_t numel() const { return data_ ? shape_.numel() : 0; }
  std::size_t size_bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }

  template <class T>
  auto data() const {
    require(!data_ || dtype_of<T> == dtype_, "a tensor of {} {} was read as {}", name_of(dtype_),
            shape_, name_of(dtype_of<T>));
    return static_cast<std::conditional_t<is_const, const T, T>*>(data_);
  }

  // The same elements under another shape of equal size.
  BasicTensor reshape(Shape shape) const {
    require(shape.numel() == shape_.numel(), "cannot view {} as {}", shape_, shape);
    return {data_, dtype_, shape, device_};
  }

  // Indices [begin, begin + count) of the outermost dimension.
  BasicTensor slice(std::int64_t begin, std::int64_t count) const {
    require(begin >= 0 && count >= 0 && begin + count <= dim(0), "rows [{}, {}) lie outside {}",
            begin, begin + count, shape_);
    const std::int64_t stride = dim(0) ? shape_.numel() / dim(0) : 0;
    using Byte = std::conditional_t<is_const, const std::byte, std::byte>;
    auto* first =
        static_cast<Byte*>(data_) + static_cast<std::size_t>(begin * stride) * size_of(dtype_);
    return {first, dtype_, shape_.with(0, count), device_};
  }

 private:
  Void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
  DeviceKind device_ = DeviceKind::cpu;
};

using Tensor = BasicTensor<void>;
using ConstTensor = BasicTensor<const void>;

}  // namespace orchard
