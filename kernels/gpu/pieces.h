// Elements on their way through registers as they lie in memory: in bf16 half of what their floats
// (Values) would take, which counts where many loads are in flight. Kernels are templates of the
// number n of neighbouring elements that a thread moves, with two instances: per_vector<T>, where
// rows and addresses allow accesses of 16 bytes, and 1, for all others.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/values.h"
#include "kernels/gpu/vector.h"

namespace orchard::GPU_NAMESPACE {

template <class T, int n>
struct Piece {
  static_assert(n == 1 || n == per_vector<T>, "one element or one vector");
  std::conditional_t<n == 1, T, uint4> word;
};

template <int n, class T>
__device__ Piece<T, n> load_piece(const T* address) {
  return {load(reinterpret_cast<const decltype(Piece<T, n>::word)*>(address))};
}

template <class T, int n>
__device__ void store_piece(T* address, const Piece<T, n>& piece) {
  store(reinterpret_cast<decltype(Piece<T, n>::word)*>(address), piece.word);
}

template <class T, int n>
__device__ Values<n> values_of(const Piece<T, n>& piece) {
  Values<n> out;
  if constexpr (n == 1) {
    out[0] = widen(piece.word);
  } else {
    const Floats<T> floats = unpack<T>(piece.word);
#pragma unroll
    for (int i = 0; i < n; ++i) out[i] = floats.value[i];
  }
  return out;
}

// Calls body(std::integral_constant<int, n>{}) with the largest n for rows of `cols` elements of T
// in all these tensors; absent ones (nullptr) do not matter, fp32 gradients may be among them.
template <class T, class Body>
void visit_piece(std::int64_t cols, std::initializer_list<const void*> tensors, const Body& body) {
  if (cols % per_vector<T> == 0 && all_aligned(16, tensors)) {
    body(std::integral_constant<int, per_vector<T>>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

}  // namespace orchard::GPU_NAMESPACE
