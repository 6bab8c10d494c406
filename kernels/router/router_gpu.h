// What the files of a GPU's router share: how tokens and experts are dealt to threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "kernels/core/error.h"
#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

void register_router_backward(OperationTable&);

inline constexpr int max_router_experts = 256;
inline constexpr int router_warps = 8, router_threads = 32 * router_warps;
static_assert(router_threads >= max_router_experts, "a thread tends one expert");

// The tokens that one block routes: those of one sequence, at most so many.
inline constexpr int slice_tokens = 64;

struct Sequences {
  const std::int32_t* offsets;      // [count + 1]
  const std::int32_t* real_tokens;  // [count]
  int count;
};

// One sequence or a part of it: tokens [begin, real_end) take part, [real_end, end) are padding.
struct TokenRange {
  int sequence;
  int begin, real_end, end;
};

__device__ inline TokenRange whole_sequence(const Sequences& all, int s) {
  const int begin = load(all.offsets + s);
  return {s, begin, begin + load(all.real_tokens + s), load(all.offsets + s + 1)};
}

__device__ inline int slices_of(const TokenRange& sequence) {
  return (sequence.end - sequence.begin + slice_tokens - 1) / slice_tokens;
}

// Slice `index` of all slices of all sequences, in order; its sequence is -1 if there is none.
__device__ inline TokenRange find_slice(const Sequences& all, int index) {
  for (int s = 0; s < all.count; ++s) {
    TokenRange range = whole_sequence(all, s);
    const int slices = slices_of(range);
    if (index < slices) {
      range.begin += index * slice_tokens;
      range.end = std::min(range.end, range.begin + slice_tokens);
      range.real_end = std::max(range.begin, std::min(range.real_end, range.end));
      return range;
    }
    index -= slices;
  }
  return {-1, 0, 0, 0};
}

// Calls body(std::integral_constant<int, n>{}) with the number of experts that a lane holds: expert
// lane + 32·i in place i.
template <class Body>
void visit_experts_per_lane(std::string_view operation, std::int64_t experts, const Body& body) {
  require(experts <= max_router_experts, "{}: {} experts, GPU kernels take at most {}", operation,
          experts, max_router_experts);
  if (experts <= 32) return body(std::integral_constant<int, 1>{});
  if (experts <= 64) return body(std::integral_constant<int, 2>{});
  if (experts <= 128) return body(std::integral_constant<int, 4>{});
  return body(std::integral_constant<int, 8>{});
}

}  // namespace orchard::GPU_NAMESPACE
