// Where a GEMM kernel's sums go: rounded once, with bias, onto what was there before.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/vector.h"

namespace orchard::GPU_NAMESPACE {

// How c is written. Modes that cost a compare a quad are not worth an instance of the kernel each.
template <class T>
struct Epilogue {
  void* c;         // [m, n], f32 or bf16
  const T* bias;   // [n] or nullptr
  bool c_is_bf16;  // else f32
  bool add;        // to what c holds
  bool vectors;    // quads of columns are aligned to their size
};

inline bool is_aligned(const void* address, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

template <class T>
Epilogue<T> epilogue(const Tensor& c, const ConstTensor& bias, Accumulate accumulate) {
  const bool c_is_bf16 = c.dtype() == DType::bf16;
  return {.c = c.raw(),
          .bias = bias.data<T>(),
          .c_is_bf16 = c_is_bf16,
          .add = accumulate == Accumulate::add,
          .vectors = c.dim(-1) % 4 == 0 && is_aligned(c.raw(), c_is_bf16 ? 8 : 16)};
}

struct Quad {
  float value[4];
};

__device__ inline Quad load_shared_quad(const float* address) {
  const float4 v = load_shared(reinterpret_cast<const float4*>(address));
  return {{v.x, v.y, v.z, v.w}};
}

__device__ inline Quad load_quad(const float* address) {
  const float4 v = load(reinterpret_cast<const float4*>(address));
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline Quad load_quad(const bf16* address) {
  const uint2 v = load(reinterpret_cast<const uint2*>(address));
  return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
           __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)}};
}
__device__ inline void store_quad(float* address, const Quad& v) {
  store(reinterpret_cast<float4*>(address), float4{v.value[0], v.value[1], v.value[2], v.value[3]});
}
__device__ inline void store_quad(bf16* address, const Quad& v) {
  store(reinterpret_cast<uint2*>(address),
        uint2{pack_bf16x2(v.value[0], v.value[1]), pack_bf16x2(v.value[2], v.value[3])});
}

template <class C>
__device__ void write_quad(C* c, bool add, bool vectors, int columns, Quad sums) {
  if (vectors) {
    if (add) {
      const Quad old = load_quad(c);
      for (int i = 0; i < 4; ++i) sums.value[i] += old.value[i];
    }
    return store_quad(c, sums);
  }
  for (int i = 0; i < 4; ++i) {
    if (i < columns)
      store(c + i, narrow<C>(add ? sums.value[i] + widen(load(c + i)) : sums.value[i]));
  }
}

// Writes four sums of one row of c [*, n], columns `col` on; those beyond n are dropped. `row_begin`
// is the index of the row's first element.
template <class T>
__device__ void write_sums(const Epilogue<T>& out, std::int64_t row_begin, int col, int n,
                           Quad sums) {
  if (col >= n) return;
  if (out.bias != nullptr) {
    for (int i = 0; i < 4; ++i) {
      if (col + i < n) sums.value[i] += widen(load_readonly(out.bias + col + i));
    }
  }
  const std::int64_t at = row_begin + col;
  if (out.c_is_bf16) {
    write_quad(static_cast<bf16*>(out.c) + at, out.add, out.vectors, n - col, sums);
  } else {
    write_quad(static_cast<float*>(out.c) + at, out.add, out.vectors, n - col, sums);
  }
}

// Writes two neighbouring mma tiles of a warp, [16, 8] each, whose first element is [row, col] of c. A
// lane has two columns of either tile; lanes exchange them in pairs, so that each has four columns of
// one: stores then fill whole 32-byte sectors.
template <class T>
__device__ void write_fragments(const Epilogue<T>& out, const Work& work, const float* left,
                                const float* right, int row, int col) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool odd = lane % 2 != 0;
  const int own_col = col + lane % 4 / 2 * 4 + (odd ? 8 : 0);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* const l = left + 2 * half;
    const float* const r = right + 2 * half;
    const float x = __shfl_xor_sync(all_lanes, odd ? l[0] : r[0], 1);
    const float y = __shfl_xor_sync(all_lanes, odd ? l[1] : r[1], 1);
    const int own_row = row + lane / 4 + 8 * half;
    if (own_row < work.m) {
      write_sums(out, work.c + std::int64_t{own_row} * work.n, own_col, work.n,
                 odd ? Quad{{x, y, r[0], r[1]}} : Quad{{l[0], l[1], x, y}});
    }
  }
}

}  // namespace orchard::GPU_NAMESPACE
