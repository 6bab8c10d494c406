// What the tests of operations share: host tensors with guard bytes, reproducible random values,
// comparison with an fp64 reference. A test of an operation fills tensors, runs it twice, compares
// the runs bit for bit, compares with the reference, and checks that nothing outside the outputs
// was written.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "kernels/device/device.h"

namespace orchard::testing {

inline Device& cpu_device() {
  static const std::unique_ptr<Device> device = make_cpu_device();
  return *device;
}

// A tensor in host memory between two guard zones that must keep their pattern.
class Guarded {
 public:
  Guarded(DType dtype, Shape shape) : dtype_(dtype), shape_(shape) {
    bytes_.resize(tensor_bytes() + 2 * guard, std::byte{0xa5});
  }
  ~Guarded() {
    EXPECT_TRUE(guards_intact()) << "bytes outside a tensor of shape " << fmt::format("{}", shape_)
                                 << " were written";
  }
  Guarded(const Guarded&) = default;
  Guarded& operator=(const Guarded&) = default;

  operator Tensor() { return tensor(); }       // NOLINT(google-explicit-constructor)
  operator ConstTensor() { return tensor(); }  // NOLINT(google-explicit-constructor)
  Tensor tensor() { return {bytes_.data() + guard, dtype_, shape_, DeviceKind::cpu}; }
  // The same memory with both guard zones, for a device's copy of all of it.
  Tensor with_guards() {
    return {bytes_.data(), DType::u8, {static_cast<std::int64_t>(bytes_.size())}, DeviceKind::cpu};
  }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  std::int64_t size() const { return shape_.numel(); }

  double at(std::int64_t i) const {
    const std::byte* p = bytes_.data() + guard;
    switch (dtype_) {
      case DType::f32:
        return reinterpret_cast<const float*>(p)[i];
      case DType::bf16:
        return to_float(reinterpret_cast<const bf16*>(p)[i]);
      case DType::i32:
        return reinterpret_cast<const std::int32_t*>(p)[i];
      case DType::i64:
        return static_cast<double>(reinterpret_cast<const std::int64_t*>(p)[i]);
      case DType::u8:
        return reinterpret_cast<const std::uint8_t*>(p)[i];
    }
    return 0;
  }

  void set(std::int64_t i, double value) {
    std::byte* p = bytes_.data() + guard;
    switch (dtype_) {
      case DType::f32:
        reinterpret_cast<float*>(p)[i] = static_cast<float>(value);
        break;
      case DType::bf16:
        reinterpret_cast<bf16*>(p)[i] = to_bf16(static_cast<float>(value));
        break;
      case DType::i32:
        reinterpret_cast<std::int32_t*>(p)[i] = static_cast<std::int32_t>(value);
        break;
      case DType::i64:
        reinterpret_cast<std::int64_t*>(p)[i] = static_cast<std::int64_t>(value);
        break;
      case DType::u8:
        reinterpret_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(value);
        break;
    }
  }

  // The values as the operation sees them (after rounding to the dtype).
  std::vector<double> values() const {
    std::vector<double> out(static_cast<std::size_t>(size()));
    for (std::int64_t i = 0; i < size(); ++i) out[static_cast<std::size_t>(i)] = at(i);
    return out;
  }

  bool operator==(const Guarded& other) const { return bytes_ == other.bytes_; }

  static constexpr std::size_t guard = 256;  // bytes of one zone

 private:
  std::size_t tensor_bytes() const {
    return static_cast<std::size_t>(shape_.numel()) * size_of(dtype_);
  }
  bool guards_intact() const {
    for (std::size_t i = 0; i < guard; ++i) {
      if (bytes_[i] != std::byte{0xa5} || bytes_[bytes_.size() - 1 - i] != std::byte{0xa5})
        return false;
    }
    return true;
  }

  DType dtype_;
  Shape shape_;
  std::vector<std::byte> bytes_;
};

// Standard normal values, the same on every machine for one seed.
inline Guarded random_normal(DType dtype, Shape shape, unsigned seed, double scale = 1.0,
                             double shift = 0.0) {
  Guarded out(dtype, shape);
  std::mt19937 engine(seed);
  for (std::int64_t i = 0; i < out.size(); ++i) {
    // Box-Muller on the engine's own bits: std::normal_distribution differs between libraries.
    const double u = (engine() + 0.5) / 4294967296.0;
    const double v = (engine() + 0.5) / 4294967296.0;
    out.set(i, shift + scale * std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * M_PI * v));
  }
  return out;
}

// f32 [1].
inline Guarded number(double value) {
  Guarded t(DType::f32, {1});
  t.set(0, value);
  return t;
}

inline Guarded zeros(DType dtype, Shape shape) {
  Guarded out(dtype, shape);
  for (std::int64_t i = 0; i < out.size(); ++i) out.set(i, 0);
  return out;
}

inline Guarded integers(Shape shape, std::span<const int> values) {
  Guarded out(DType::i32, shape);
  for (std::size_t i = 0; i < values.size(); ++i) out.set(static_cast<std::int64_t>(i), values[i]);
  return out;
}

// Unit roundoff of a dtype: half the distance from 1 to the next larger number.
inline double unit_roundoff(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : 0x1p-24;
}

// Every element of `actual` lies within `bound` of `expected`, in units of max(|expected_i|,
// scale), where scale is the root mean square of expected: an absolute floor for elements that
// cancel to nearly zero. Where whole results cancel, the test passes the size of the terms that do
// as `terms`.
inline void expect_close(const Guarded& actual, const std::vector<double>& expected, double bound,
                         const char* what, double terms = 0) {
  ASSERT_EQ(static_cast<std::size_t>(actual.size()), expected.size()) << what;
  double square = 0;
  for (const double e : expected) square += e * e;
  const double rms =
      expected.empty() ? 0 : std::sqrt(square / static_cast<double>(expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double value = actual.at(static_cast<std::int64_t>(i));
    const double tolerance = bound * std::max({std::abs(expected[i]), rms, terms, 1e-30});
    ASSERT_TRUE(std::abs(value - expected[i]) <= tolerance)  // false for NaN, too
        << what << "[" << i << "] of " << fmt::format("{}", actual.shape()) << " is " << value
        << ", expected " << expected[i] << " within " << tolerance;
  }
}

}  // namespace orchard::testing
