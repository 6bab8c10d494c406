// cp.async: a thread copies from global to shared memory without waiting and without registers in
// between. From sm_80 on.
//
// Copies are collected in groups, in order: cp_async_commit closes the open one (which may be
// empty), cp_async_wait<n> returns when at most the n newest groups are pending. Until a copy has
// been waited for, its destination must not be read nor its source written. The wait makes the data
// visible to the thread that issued the copy; others need a barrier after it. Addresses are aligned
// to the size of the copy.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

// 16 bytes, past L1. Of the source the first `source_bytes` are read; the rest becomes zero.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global,
                                            unsigned source_bytes = 16) {
  asm volatile(
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
      "l"(global), "r"(source_bytes)
      : "memory");
}

// 4 or 8 bytes, through L1.
template <int bytes>
__device__ __forceinline__ void cp_async_small(void* shared, const void* global,
                                               unsigned source_bytes = bytes) {
  static_assert(bytes == 4 || bytes == 8, "cp.async.ca copies 4 or 8 bytes here");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
               "l"(global), "n"(bytes), "r"(source_bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int pending_groups>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending_groups) : "memory");
}

// Commits, and waits for every copy.
__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

#else

inline void cp_async_16(void* shared, const void* global, unsigned source_bytes = 16,
                        Where where = Where::current()) {
  issue_async_copy({shared, global, 16, source_bytes}, where);
}

template <int bytes>
void cp_async_small(void* shared, const void* global, unsigned source_bytes = bytes,
                    Where where = Where::current()) {
  static_assert(bytes == 4 || bytes == 8, "cp.async.ca copies 4 or 8 bytes here");
  issue_async_copy({shared, global, bytes, source_bytes}, where);
}

inline void cp_async_commit() {
  commit_async_copies();
}

template <int pending_groups>
void cp_async_wait() {
  wait_async_copies(pending_groups);
}

inline void cp_async_wait_all() {
  commit_async_copies();
  wait_async_copies(0);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
