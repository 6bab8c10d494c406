// Sixteen bytes of a tensor, the widest access of one thread, and the floats they hold.
#pragma once

#include "kernels/core/dtype.h"
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/convert.h"

namespace orchard::GPU_NAMESPACE {

template <class T>
inline constexpr int per_vector = 16 / static_cast<int>(sizeof(T));

template <class T>
struct Floats {
  float value[per_vector<T>];
};

__device__ inline Floats<float> unpack(const uint4& bits, const float*) {
  return {{__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
           __uint_as_float(bits.w)}};
}

// A bf16 is the upper half of a float: one shift or mask each.
__device__ inline Floats<bf16> unpack(const uint4& bits, const bf16*) {
  const unsigned word[4] = {bits.x, bits.y, bits.z, bits.w};
  Floats<bf16> out;
  for (int i = 0; i < 4; ++i) {
    out.value[2 * i] = __uint_as_float(word[i] << 16);
    out.value[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
  }
  return out;
}

template <class T>
__device__ Floats<T> unpack(const uint4& bits) {
  return unpack(bits, static_cast<const T*>(nullptr));
}

__device__ inline uint4 pack(const Floats<float>& in) {
  return {__float_as_uint(in.value[0]), __float_as_uint(in.value[1]), __float_as_uint(in.value[2]),
          __float_as_uint(in.value[3])};
}

__device__ inline uint4 pack(const Floats<bf16>& in) {
  return {pack_bf16x2(in.value[0], in.value[1]), pack_bf16x2(in.value[2], in.value[3]),
          pack_bf16x2(in.value[4], in.value[5]), pack_bf16x2(in.value[6], in.value[7])};
}

__device__ inline float widen(float value) {
  return value;
}
__device__ inline float widen(bf16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

template <class T>
__device__ T narrow(float value);
template <>
__device__ inline float narrow<float>(float value) {
  return value;
}
template <>
__device__ inline bf16 narrow<bf16>(float value) {
  return {static_cast<unsigned short>(pack_bf16x2(value, 0.0f))};
}

}  // namespace orchard::GPU_NAMESPACE
