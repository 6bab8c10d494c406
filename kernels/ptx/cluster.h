// Clusters: blocks that run at the same time, wait for each other and reach each other's shared memory.
// From sm_90 on; LaunchShape::cluster asks for them.
//
// Each thread arrives at the cluster's barrier and then waits, by turns; after the wait it sees what all
// others wrote before they arrived. A block must not end while others may still reach into its shared
// memory: it arrives and waits once more before that.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

__device__ __forceinline__ void cluster_barrier_arrive() {
  asm volatile("barrier.cluster.arrive;" ::: "memory");
}

__device__ __forceinline__ void cluster_barrier_wait() {
  asm volatile("barrier.cluster.wait;" ::: "memory");
}

// Of this block in its cluster, and how many blocks it has.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_blocks() {
  unsigned blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}

// What lies at `own` of this block's shared memory, in the block of this rank: for load_shared,
// store_shared and atomic operations.
template <class T>
__device__ __forceinline__ T* in_block(T* own, unsigned rank) {
  T* there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
  return there;
}

#else

inline void cluster_barrier_arrive(Where where = Where::current()) {
  cluster_arrive(where);
}

inline void cluster_barrier_wait(Where where = Where::current()) {
  cluster_wait(where);
}

template <class T>
T* in_block(T* own, unsigned rank, Where where = Where::current()) {
  return static_cast<T*>(map_to_rank(own, rank, where));
}

#endif

}  // namespace orchard::GPU_NAMESPACE
