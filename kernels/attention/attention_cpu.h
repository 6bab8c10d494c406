// What the files of the CPU's attention share: tile sizes, strides and the carving of the
// workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/tensor.h"
#include "kernels/device/operation_table.h"

namespace orchard::cpu {

// Keys of one tile: with head_dim 64, 16 KiB of fp32 each for k and v, which stay in the L1 cache
// while the rows of queries pass by. What is left of at most 16 keys (the 65th and the 257th of an
// image) joins the tile before it instead of making one of its own.
inline constexpr std::int64_t key_tile = 64;
inline constexpr std::int64_t max_key_tile = 80;

// Keys of the tile that begins with `remaining` keys to go.
inline std::int64_t next_key_tile(std::int64_t remaining) {
  return remaining <= max_key_tile ? remaining : key_tile;
}

// Queries of one tile, and of one that the causal mask cuts: the less, the fewer scores are
// computed for nothing.
inline constexpr std::int64_t query_tile = 64;
inline constexpr std::int64_t diagonal_query_tile = 16;

// Queries of a piece of work: packing 64 keys then costs 3 % of the piece's products.
inline constexpr std::int64_t query_block = 128;

inline constexpr float log2_e = 1.44269504088896341f;
inline constexpr float ln_2 = 0.693147180559945309f;

// Hands out pieces of a block of memory, each aligned to 64 bytes. Constructed with nullptr it only
// counts the bytes.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  template <class T>
  T* take(std::int64_t count) {
    std::byte* const begin = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(begin);
  }
  std::size_t used_bytes() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// The heads of q, k and v. Row r of head h begins at element r·stride + h·head_dim.
struct Heads {
  template <class Operation>
  explicit Heads(const Operation& op)
      : query_heads(op.q.dim(1)),
        kv_heads(op.k.dim(1)),
        group(query_heads / kv_heads),
        head_dim(op.q.dim(2)),
        query_stride(query_heads * head_dim),
        key_stride(kv_heads * head_dim) {}

  std::int64_t query_heads, kv_heads;
  std::int64_t group;  // query heads that read one kv head
  std::int64_t head_dim;
  std::int64_t query_stride, key_stride;
};

// Zeros the rows of `tensor` outside [begin, end).
void zero_outside(Stream& stream, const Tensor& tensor, std::int64_t begin, std::int64_t end);

void register_attention_forward(OperationTable&);
void register_attention_backward(OperationTable&);

}  // namespace orchard::cpu
