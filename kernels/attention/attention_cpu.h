// What the files of the CPU's attention share: tile sizes, strides and the carving of the
// workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/tensor.h"
#include "kernels/device/operation_table.h"

namespace orchard::cpu {

// Keys of one tile. With head_dim 64 a tile of k or v is 16 KiB of fp32: it stays in the L1 cache
// while the rows of queries pass by.
inline constexpr std::int64_t key_tile = 64;

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
