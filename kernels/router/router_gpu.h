// What the files of a GPU's router share: how tokens and experts are dealt to threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "kernels/core/error.h"
#include "kernels/device/operation_table.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/scan.h"
#include "kernels/gpu/warp.h"

namespace orchard::GPU_NAMESPACE {

void register_router_backward(OperationTable&);

inline constexpr int max_router_experts = 256;
inline constexpr int router_warps = 8, router_threads = 32 * router_warps;

// The tokens that one block routes: those of one sequence, at most so many.
inline constexpr int slice_tokens = 64;

__device__ inline int lane_of_thread() {
  return static_cast<int>(threadIdx.x) % 32;
}
__device__ inline int warp_of_thread() {
  return static_cast<int>(threadIdx.x) / 32;
}

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

// An empty sequence has an empty slice, so that a block tends it.
__device__ inline int slices_of(const TokenRange& sequence) {
  return std::max(1, (sequence.end - sequence.begin + slice_tokens - 1) / slice_tokens);
}

// Slice `index` of all slices of all sequences, in order; its sequence is -1 if there is none. All lanes
// of a warp call with the same index: 32 sequences are looked at together.
__device__ inline TokenRange find_slice(const Sequences& all, int index) {
  for (int first = 0; first < all.count; first += 32) {
    const int s = first + lane_of_thread();
    TokenRange range = s < all.count ? whole_sequence(all, s) : TokenRange{s, 0, 0, 0};
    const int slices = s < all.count ? slices_of(range) : 0, end = warp_inclusive_sum(slices);
    const unsigned owners = __ballot_sync(all_lanes, index < end);
    if (owners != 0) {
      const int owner = __ffs(static_cast<int>(owners)) - 1;
      range.begin += (index - (end - slices)) * slice_tokens;
      range.end = std::min(range.end, range.begin + slice_tokens);
      range.real_end = std::max(range.begin, std::min(range.real_end, range.end));
      return {first + owner, __shfl_sync(all_lanes, range.begin, owner),
              __shfl_sync(all_lanes, range.real_end, owner),
              __shfl_sync(all_lanes, range.end, owner)};
    }
    index -= __shfl_sync(all_lanes, end, 31);
  }
  return {-1, 0, 0, 0};
}

// The slices of all sequences before `s`. All lanes of a warp call.
__device__ inline int slices_before(const Sequences& all, int s) {
  int slices = 0;
  for (int i = lane_of_thread(); i < s; i += 32) slices += slices_of(whole_sequence(all, i));
  return warp_sum(slices);
}

// How a warp holds tokens: `lanes` neighbouring lanes have one, of which each holds n experts, expert
// i·lanes + its own number in place i. With few experts a warp works on several tokens at once, and
// the reductions over experts, whose latency bounds the router, take fewer steps.
template <int lanes_of_token, int n>
struct TokenLanes {
  static constexpr int lanes = lanes_of_token, per_lane = n, tokens_of_warp = 32 / lanes;
  static __device__ int lane() { return lane_of_thread() % lanes; }
  static __device__ int token_of_warp() { return lane_of_thread() / lanes; }
  static __device__ int expert(int i) { return i * lanes + lane(); }
};

// Calls body(TokenLanes<lanes, n>{}) for so many experts.
template <class Body>
void visit_token_lanes(std::string_view operation, std::int64_t experts, const Body& body) {
  require(experts <= max_router_experts, "{}: {} experts, GPU kernels take at most {}", operation,
          experts, max_router_experts);
  if (experts <= 32) return body(TokenLanes<8, 4>{});
  if (experts <= 64) return body(TokenLanes<8, 8>{});
  if (experts <= 128) return body(TokenLanes<16, 8>{});
  return body(TokenLanes<32, 8>{});
}

}  // namespace orchard::GPU_NAMESPACE
