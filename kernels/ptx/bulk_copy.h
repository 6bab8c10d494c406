// cp.async.bulk: the copy engine of sm_90 moves contiguous bytes, for one thread's asking. Addresses and
// sizes are multiples of 16.
//
// A load counts for an mbarrier, as tma_load does. Stores -- tma_store and tma_add, too -- are collected
// in groups, as those of cp.async: bulk_commit closes the open group, bulk_wait<n> returns when at most
// the n newest groups are pending, and bulk_wait_read<n> when of all others the sources have been read
// and may be overwritten. The source of a store must have been fenced with fence_proxy_async.
#pragma once

#include <cstdint>

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

__device__ __forceinline__ void bulk_load(void* shared, const void* global, unsigned bytes,
                                          std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ void bulk_store(void* global, const void* shared, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

template <int pending_groups>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending_groups) : "memory");
}

template <int pending_groups>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending_groups) : "memory");
}

#else

inline void bulk_load(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier,
                      Where where = Where::current()) {
  issue_bulk_load(shared, global, bytes, barrier, where);
}

inline void bulk_store(void* global, const void* shared, unsigned bytes,
                       Where where = Where::current()) {
  issue_bulk_store(global, shared, bytes, where);
}

inline void bulk_commit() {
  commit_bulk();
}

template <int pending_groups>
void bulk_wait() {
  wait_bulk(pending_groups, false);
}

template <int pending_groups>
void bulk_wait_read() {
  wait_bulk(pending_groups, true);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
