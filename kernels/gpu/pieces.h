// Runs of neighbouring elements that one thread moves: a Piece is `n` elements of T as they lie in
// memory, Values are the floats they stand for. Kernels are templates of n, with two instances:
// per_vector<T>, where rows and addresses allow accesses of 16 bytes, and 1, for all others.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/core/tensor.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/vector.h"

namespace orchard::GPU_NAMESPACE {

template <int n>
struct Values {
  float value[n];
};

template <class T, int n>
struct Piece {
  static constexpr int bytes = n * static_cast<int>(sizeof(T));
  static_assert(n == 1 || bytes % 16 == 0, "a piece is one element or whole vectors");
  using Word = std::conditional_t<n == 1, T, uint4>;
  static constexpr int words = n == 1 ? 1 : bytes / 16;
  Word word[words];
};

// All words before the first use, so that they are in flight together.
template <int n, class T>
__device__ Piece<T, n> load_piece(const T* address) {
  using P = Piece<T, n>;
  P piece;
  const auto* const words = reinterpret_cast<const typename P::Word*>(address);
#pragma unroll
  for (int i = 0; i < P::words; ++i) piece.word[i] = load(words + i);
  return piece;
}

template <class T, int n>
__device__ void store_piece(T* address, const Piece<T, n>& piece) {
  using P = Piece<T, n>;
  auto* const words = reinterpret_cast<typename P::Word*>(address);
#pragma unroll
  for (int i = 0; i < P::words; ++i) store(words + i, piece.word[i]);
}

template <class T, int n>
__device__ Values<n> values_of(const Piece<T, n>& piece) {
  Values<n> out;
  if constexpr (n == 1) {
    out.value[0] = widen(piece.word[0]);
  } else {
#pragma unroll
    for (int i = 0; i < Piece<T, n>::words; ++i) {
      const Floats<T> floats = unpack<T>(piece.word[i]);
#pragma unroll
      for (int j = 0; j < per_vector<T>; ++j) out.value[i * per_vector<T> + j] = floats.value[j];
    }
  }
  return out;
}

template <class T, int n>
__device__ Piece<T, n> piece_of(const Values<n>& values) {
  Piece<T, n> out;
  if constexpr (n == 1) {
    out.word[0] = narrow<T>(values.value[0]);
  } else {
#pragma unroll
    for (int i = 0; i < Piece<T, n>::words; ++i) {
      Floats<T> floats;
#pragma unroll
      for (int j = 0; j < per_vector<T>; ++j) floats.value[j] = values.value[i * per_vector<T> + j];
      out.word[i] = pack(floats);
    }
  }
  return out;
}

template <int n, class T>
__device__ Values<n> load_values(const T* address) {
  return values_of(load_piece<n>(address));
}

template <int n, class T>
__device__ void store_values(T* address, const Values<n>& values) {
  store_piece(address, piece_of<T>(values));
}

// Whether rows of `cols` elements of T can be cut into vectors: so can each row of each of these
// tensors (absent ones do not matter), fp32 gradients among them.
template <class T>
bool take_vectors(std::int64_t cols, std::initializer_list<const void*> tensors) {
  if (cols % per_vector<T>) return false;
  for (const void* const tensor : tensors) {
    if (reinterpret_cast<std::uintptr_t>(tensor) % 16) return false;
  }
  return true;
}

// Calls body(std::integral_constant<int, n>{}) with the n that the operands allow.
template <class T, class Body>
void visit_piece(std::int64_t cols, std::initializer_list<const void*> tensors, const Body& body) {
  if (take_vectors<T>(cols, tensors)) {
    body(std::integral_constant<int, per_vector<T>>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

}  // namespace orchard::GPU_NAMESPACE
