// A few floats in registers, and their way from and to memory: as wide accesses as `n` elements make.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/core/dtype.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/vector.h"
#include "kernels/ptx/convert.h"

namespace orchard::GPU_NAMESPACE {

template <int n>
struct Values {
  float value[n];
  __device__ float& operator[](int i) { return value[i]; }
  __device__ float operator[](int i) const { return value[i]; }
};

// f(a[i], b[i], ...) for each i.
template <class F, int n, class... Others>
__device__ Values<n> map(const F& f, const Values<n>& first, const Others&... others) {
  Values<n> out;
#pragma unroll
  for (int i = 0; i < n; ++i) out[i] = f(first[i], others[i]...);
  return out;
}

// What one access of 16, 8, 4 or 2 bytes moves.
template <int bytes>
struct WordOf;
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};

template <>
struct WordOf<2> {
  using type = unsigned short;
};

template <class T, int n>
inline constexpr int elements_per_access = n < per_vector<T> ? n : per_vector<T>;

template <class T, int n>
using AccessWord = typename WordOf<elements_per_access<T, n>* static_cast<int>(sizeof(T))>::type;

__device__ inline void write_words(const uint4& in, unsigned* out) {
  out[0] = in.x, out[1] = in.y, out[2] = in.z, out[3] = in.w;
}
__device__ inline void write_words(const uint2& in, unsigned* out) {
  out[0] = in.x, out[1] = in.y;
}
__device__ inline void write_words(const unsigned& in, unsigned* out) {
  out[0] = in;
}
__device__ inline void read_words(const unsigned* in, uint4& out) {
  out = {in[0], in[1], in[2], in[3]};
}
__device__ inline void read_words(const unsigned* in, uint2& out) {
  out = {in[0], in[1]};
}
__device__ inline void read_words(const unsigned* in, unsigned& out) {
  out = in[0];
}

__device__ inline float element_of(const unsigned* words, int i, const float*) {
  return __uint_as_float(words[i]);
}
__device__ inline float element_of(const unsigned* words, int i, const bf16*) {
  return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}

// Elements address[0 .. n), aligned to min(16 bytes, all of them).
template <int n, class T>
__device__ Values<n> load_values(const T* address) {
  Values<n> out;
  if constexpr (n == 1) {
    out[0] = widen(load(address));
  } else {
    constexpr int step = elements_per_access<T, n>;
#pragma unroll
    for (int first = 0; first < n; first += step) {
      unsigned words[4];
      write_words(load(reinterpret_cast<const AccessWord<T, n>*>(address + first)), words);
#pragma unroll
      for (int i = 0; i < step; ++i) out[first + i] = element_of(words, i, address);
    }
  }
  return out;
}

// The elements of one access from `first` on, as they lie in memory.
template <class T, int n>
__device__ AccessWord<T, n> word_of(const Values<n>& values, int first = 0) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < elements_per_access<T, n>; ++i) {
    if constexpr (sizeof(T) == sizeof(float)) {
      words[i] = __float_as_uint(values[first + i]);
    } else if (i % 2 == 0) {
      words[i / 2] = pack_bf16x2(values[first + i], values[first + i + 1]);
    }
  }
  AccessWord<T, n> word;
  read_words(words, word);
  return word;
}

template <int n, class T>
__device__ void store_values(T* address, const Values<n>& values) {
  if constexpr (n == 1) {
    store(address, narrow<T>(values[0]));
  } else {
    constexpr int step = elements_per_access<T, n>;
#pragma unroll
    for (int first = 0; first < n; first += step) {
      store(reinterpret_cast<AccessWord<T, n>*>(address + first), word_of<T>(values, first));
    }
  }
}

// Whether all addresses are multiples of `bytes`; absent operands (nullptr) are.
inline bool all_aligned(std::size_t bytes, std::initializer_list<const void*> addresses) {
  for (const void* const address : addresses) {
    if (reinterpret_cast<std::uintptr_t>(address) % bytes) return false;
  }
  return true;
}

}  // namespace orchard::GPU_NAMESPACE
