// Single-threaded products of at most 64 rows, by oneDNN's batch-reduce kernels (AVX-512, with
// AVX512-BF16 for bf16). A product of any size is cut into such tiles, which the OpenMP pool shares
// out; so its result cannot depend on the number of threads, and the set of primitives is closed:
// one per power of two up to 64 rows, made when a shape is first seen.
//
// The right-hand matrix is best given packed, the layout that the kernels read without copying:
// blocks of 64 columns, in each the words of one row of 64 after the other, where a word is one f32
// or two bf16 that follow each other along k. Rows are padded with zeros to a multiple of 16 words,
// columns to 64. (oneDNN's BA16a64b and BA16a64b2a.)
#pragma once

#include <array>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/device/device.h"
#include "kernels/gemm/gemm.h"

namespace orchard::cpu {

inline constexpr std::int64_t tile_rows = 64;
inline constexpr std::int64_t block_cols = 64;

enum class RightLayout : std::uint8_t { packed, plain, plain_transposed };

// c [rows, n] (+)= a [rows, k] · right [k, n] (+ bias [n]), all dense and, but for right,
// row-major.
struct TileShape {
  std::int64_t n = 0;
  std::int64_t k = 0;
  DType in = DType::f32;
  DType out = DType::f32;
  RightLayout right = RightLayout::packed;
  Accumulate accumulate = Accumulate::overwrite;
  bool bias = false;

  auto operator<=>(const TileShape&) const = default;
};

// Words of a packed column: k elements, padded.
constexpr std::int64_t packed_words(std::int64_t k, DType dtype) {
  const std::int64_t words = dtype == DType::bf16 ? (k + 1) / 2 : k;
  return (words + 15) / 16 * 16;
}
constexpr std::size_t packed_bytes(std::int64_t k, std::int64_t n, DType dtype) {
  const std::int64_t cols = (n + block_cols - 1) / block_cols * block_cols;
  return static_cast<std::size_t>(packed_words(k, dtype) * cols) * sizeof(std::uint32_t);
}

struct TileOperands {
  const std::byte* a = nullptr;
  const std::byte* right = nullptr;
  std::byte* c = nullptr;
  const std::byte* bias = nullptr;
};

// The primitives of one shape, with memory objects for every thread.
class TileKernel {
 public:
  TileKernel(const dnnl::engine& engine, const TileShape& shape);

  bool available() const { return available_; }
  std::size_t scratch_bytes() const { return scratch_bytes_; }
  void reserve_threads(int threads);

  // Multiplies `rows` (1 to 64) rows on the calling thread, whose number in the team is `thread`.
  // False: oneDNN reported an error. `scratch` is the thread's own.
  bool multiply(int thread, std::int64_t rows, const TileOperands& operands,
                std::byte* scratch) const;

  static constexpr int sizes = 7;  // 1, 2, 4, ... 64 rows

 private:
  struct ThreadMemory {
    dnnl::stream stream;
    std::array<dnnl::memory, sizes> a, c;
    dnnl::memory right, bias, scratch;
  };

  dnnl::engine engine_;
  TileShape shape_;
  bool available_ = true;
  std::array<dnnl::matmul, sizes> primitives_;
  std::array<dnnl::memory::desc, sizes> a_, c_;
  dnnl::memory::desc right_, bias_;
  std::size_t scratch_bytes_ = 0;
  mutable std::vector<ThreadMemory> threads_;
};

class TileKernels {
 public:
  // The kernel for a shape, ready for the current number of threads; nullptr where oneDNN has none
  // on this CPU. Not thread-safe.
  const TileKernel* find(const TileShape& shape, DeviceStatistics& statistics);

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::map<TileShape, TileKernel> kernels_;
};

}  // namespace orchard::cpu
