// A stable counting sort of items into at most 256 buckets: the same input gives the same order,
// always. Two launches:
//
//   count   each block counts the buckets of its 2048 items; the last to come turns the counts [blocks,
//           buckets] into the place where each block's items of each bucket begin; buckets may begin at
//           multiples of some number, or have places of a fixed number
//   place   each block ranks its items again and hands each to `place`
//
// Stable ranks come from votes: the lanes of a warp that hold the same bucket find each other bit
// by bit, and a lane's rank among them is the number of lower lanes. A warp walks its items in
// order and keeps one tally per bucket; the warps of a block hold consecutive runs of items.
//
// Bytes: each item's bucket twice, plus what `place` moves. Bound: the latency of two launches,
// at the sizes of a micro-batch. So all that a lane reads is in flight at once, before it is needed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/device/zero_words.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/grid.h"
#include "kernels/gpu/last_block.h"
#include "kernels/gpu/scan.h"

namespace orchard::GPU_NAMESPACE {

inline constexpr int bucket_bits = 8;
inline constexpr int max_buckets = 1 << bucket_bits;
inline constexpr int sort_warps = 8, sort_threads = 32 * sort_warps;
inline constexpr int items_per_warp = 256, items_per_block = sort_warps * items_per_warp;
inline constexpr int items_per_lane = items_per_warp / 32;
static_assert(sort_threads == max_buckets, "a thread tends one bucket");

struct WarpTallies {
  int count[sort_warps][max_buckets];
};

struct CountStorage {
  WarpTallies tallies;
  BlockSums<sort_threads> sums;
  unsigned before;
};

struct CountingSort {
  int items, buckets;
  int multiple = 1;            // where buckets begin
  int bucket_size = 0;         // places of every bucket, which suffice; 0: as many as it has items
  std::int32_t* counts;        // [sort_blocks(items), buckets]
  std::int32_t* bucket_begin;  // [buckets + 1]
  std::int32_t* bucket_end;    // [buckets]: the place behind the last item of each
};

inline int sort_blocks(std::int64_t items) {
  return std::max(1, static_cast<int>(ceil_div(items, items_per_block)));
}

// The lanes whose bucket is this lane's; of no meaning for a lane without one (-1). All lanes call.
__device__ inline unsigned peers_of(int bucket) {
  unsigned peers = __ballot_sync(all_lanes, bucket >= 0);
#pragma unroll
  for (int bit = 0; bit < bucket_bits; ++bit) {
    const bool set = (bucket >> bit & 1) != 0;
    const unsigned lanes = __ballot_sync(all_lanes, set);
    peers &= set ? lanes : ~lanes;
  }
  return peers;
}

// The lane's k-th item. The lanes of a warp have neighbouring ones.
__device__ inline int item_of_lane(int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  return static_cast<int>(blockIdx.x) * items_per_block + warp * items_per_warp + 32 * k + lane;
}

// One number for each of a lane's items.
struct LaneItems {
  int of[items_per_lane];
};

// Their buckets, -1 where there is no item or where it has none.
template <class BucketOf>
__device__ LaneItems load_buckets(const BucketOf& bucket_of, int items) {
  LaneItems buckets;
#pragma unroll
  for (int k = 0; k < items_per_lane; ++k) {
    buckets.of[k] = item_of_lane(k) < items ? bucket_of(item_of_lane(k)) : -1;
  }
  return buckets;
}

// Walks this warp's items in order. An item's rank is `tally[bucket]` plus the number of the warp's earlier
// items in its bucket, -1 without one; afterwards each tally has grown by the number of its items. All
// lanes call.
__device__ inline LaneItems rank_items(const LaneItems& buckets, int* tally) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  LaneItems ranks;
#pragma unroll
  for (int k = 0; k < items_per_lane; ++k) {
    const int bucket = buckets.of[k];
    const unsigned peers = peers_of(bucket);
    const unsigned below = peers & ((1u << lane) - 1);
    ranks.of[k] = bucket >= 0 ? tally[bucket] + __popc(below) : -1;
    __syncwarp();  // all have read before the lowest of them counts all
    if (bucket >= 0 && below == 0) tally[bucket] += __popc(peers);
    __syncwarp();
  }
  return ranks;
}

// How many of each warp's items fall into each bucket. Ends with a barrier.
__device__ inline void tally_items(const LaneItems& buckets, WarpTallies& tallies) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int bucket = static_cast<int>(threadIdx.x) % 32; bucket < max_buckets; bucket += 32) {
    tallies.count[warp][bucket] = 0;
  }
  __syncwarp();
  rank_items(buckets, tallies.count[warp]);
  __syncthreads();
}

// counts[b][bucket] becomes the number of the bucket's items in blocks before b; bucket_begin the place of each
// bucket's first item, a multiple of `multiple`, or of `bucket_size` where that is not 0.
__device__ inline void begin_buckets(const CountingSort& sort, BlockSums<sort_threads>& sums) {
  constexpr int in_flight = 8;
  const int bucket = static_cast<int>(threadIdx.x), buckets = sort.buckets;
  const int blocks = static_cast<int>(gridDim.x);
  int count = 0;
  for (int first = 0; first < blocks && bucket < buckets; first += in_flight) {
    int held[in_flight];
    std::int32_t* const column = sort.counts + static_cast<std::int64_t>(first) * buckets + bucket;
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      held[i] = first + i < blocks ? load(column + i * buckets) : 0;
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (first + i < blocks) store(column + i * buckets, count);
      count += held[i];
    }
  }
  int padded = (count + sort.multiple - 1) / sort.multiple * sort.multiple;
  if (sort.bucket_size > 0) padded = bucket < buckets ? sort.bucket_size : 0;
  int total = 0;
  const int begin = block_exclusive_sum<sort_threads>(padded, sums, total);
  if (bucket < buckets) {
    store(sort.bucket_begin + bucket, begin);
    store(sort.bucket_end + bucket, begin + count);
  }
  if (bucket == 0) store(sort.bucket_begin + buckets, total);
}

template <class BucketOf>
__global__ void __launch_bounds__(sort_threads)
    count_buckets(BucketOf bucket_of, CountingSort sort, unsigned* arrived) {
  auto& shared = shared_storage<CountStorage>();
  tally_items(load_buckets(bucket_of, sort.items), shared.tallies);
  const int bucket = static_cast<int>(threadIdx.x);
  if (bucket < sort.buckets) {
    int count = 0;
    for (int warp = 0; warp < sort_warps; ++warp) count += shared.tallies.count[warp][bucket];
    store(sort.counts + static_cast<std::int64_t>(blockIdx.x) * sort.buckets + bucket, count);
  }
  if (is_last_block(arrived, gridDim.x, shared.before)) begin_buckets(sort, shared.sums);
}

// Places that no item takes, behind each bucket's and behind the last bucket, up to place.places.
template <class Place>
__device__ void fill_gaps(const CountingSort& sort, const Place& place) {
  const int threads = static_cast<int>(gridDim.x) * sort_threads;
  const int thread = static_cast<int>(blockIdx.x) * sort_threads + static_cast<int>(threadIdx.x);
  const auto fill = [&](int begin, int end, int first, int step) {
    // From a multiple of 32 on: a warp's stores are of whole sectors.
    for (std::int64_t at = begin / 32 * 32 + first; at < end; at += step) {
      if (at >= begin) place.fill(static_cast<int>(at));
    }
  };
  for (int bucket = thread / 32; bucket < sort.buckets; bucket += threads / 32) {
    fill(load(sort.bucket_end + bucket), load(sort.bucket_begin + bucket + 1), thread % 32, 32);
  }
  fill(load(sort.bucket_begin + sort.buckets), place.places, thread, threads);
}

template <class BucketOf, class Place>
__global__ void __launch_bounds__(sort_threads)
    place_items(BucketOf bucket_of, CountingSort sort, Place place) {
  auto& tallies = shared_storage<WarpTallies>();
  const int items = sort.items;
  const LaneItems buckets_of_lane = load_buckets(bucket_of, items);
  tally_items(buckets_of_lane, tallies);
  const int bucket = static_cast<int>(threadIdx.x);
  if (bucket < sort.buckets) {
    int next = load(sort.bucket_begin + bucket) +
               load(sort.counts + static_cast<std::int64_t>(blockIdx.x) * sort.buckets + bucket);
    for (int warp = 0; warp < sort_warps; ++warp) {
      const int count = tallies.count[warp][bucket];
      tallies.count[warp][bucket] = next;
      next += count;
    }
  }
  __syncthreads();
  const LaneItems positions = rank_items(buckets_of_lane, tallies.count[threadIdx.x / 32]);
#pragma unroll
  for (int k = 0; k < items_per_lane; ++k) {
    if (item_of_lane(k) < items) place.write(item_of_lane(k), positions.of[k]);
  }
  fill_gaps(sort, place);
}

// bucket_of(item) gives a bucket, or -1 for an item to leave out. place.write(item, position) receives every
// item once, with position -1 for those; place.fill(position) each of `place.places` positions that no item has
// taken.
template <class BucketOf, class Place>
void counting_sort(Stream& stream, const char* name, const CountingSort& sort,
                   const BucketOf& bucket_of, const Place& place) {
  const auto launch_over_items = [&](std::size_t shared_bytes, auto kernel, const auto&... rest) {
    launch(stream,
           {.kernel = name,
            .grid = {static_cast<unsigned>(sort_blocks(sort.items))},
            .block = {sort_threads},
            .shared_bytes = shared_bytes},
           kernel, bucket_of, sort, rest...);
  };
  launch_over_items(sizeof(CountStorage), count_buckets<BucketOf>, zero_words(stream));
  launch_over_items(sizeof(WarpTallies), place_items<BucketOf, Place>, place);
}

}  // namespace orchard::GPU_NAMESPACE
