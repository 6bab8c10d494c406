// Elements on their way through registers as they lie in memory: in bf16 half of what their floats
// (Values) would take, which counts where many loads are in flight. Kernels are templates of the
// number n of neighbouring elements that a thread moves, with two instances: per_vector<T>, or four where
// each takes much room beside it, where rows and addresses allow that; and 1, for all others.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/gpu/gpu.h"
#include "kernels/gpu/store_whole.h"
#include "kernels/gpu/values.h"
#include "kernels/gpu/vector.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr int quad = 4;

template <class T, int n>
struct Piece {
  static_assert(n == 1 || n == quad || n == per_vector<T>, "one element, four, or one vector");
  std::conditional_t<n == 1, T, AccessWord<T, n>> word;
};

template <int n, class T>
__device__ Piece<T, n> load_piece(const T* address) {
  return {load(reinterpret_cast<const decltype(Piece<T, n>::word)*>(address))};
}

template <class T, int n>
__device__ void store_piece(T* address, const Piece<T, n>& piece) {
  store_whole(reinterpret_cast<decltype(Piece<T, n>::word)*>(address), piece.word);
}

template <class T, int n>
__device__ Values<n> values_of(const Piece<T, n>& piece) {
  Values<n> out;
  if constexpr (n == 1) {
    out[0] = widen(piece.word);
  } else {
    unsigned words[4];
    write_words(piece.word, words);
#pragma unroll
    for (int i = 0; i < n; ++i) out[i] = element_of(words, i, static_cast<const T*>(nullptr));
  }
  return out;
}

template <class T, int n>
__device__ Piece<T, n> piece_of(const Values<n>& values) {
  if constexpr (n == 1) {
    return {narrow<T>(values[0])};
  } else {
    return {word_of<T>(values)};
  }
}

// Calls body(std::integral_constant<int, n>{}) with `widest`, or 1 where rows of `cols` elements or one of
// these tensors do not allow it; absent ones (nullptr) do not matter, fp32 gradients may be among them.
template <int widest, class Body>
void visit_width(std::int64_t cols, std::initializer_list<const void*> tensors, const Body& body) {
  if (cols % widest == 0 && all_aligned(16, tensors)) {
    body(std::integral_constant<int, widest>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

// With the elements of 16 bytes.
template <class T, class Body>
void visit_piece(std::int64_t cols, std::initializer_list<const void*> tensors, const Body& body) {
  visit_width<per_vector<T>>(cols, tensors, body);
}

}  // namespace orchard::GPU_NAMESPACE
