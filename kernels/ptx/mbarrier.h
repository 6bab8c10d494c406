// mbarrier: a barrier in shared memory that counts arrivals of threads and bytes of asynchronous
// copies. From sm_90 on.
//
// Phases alternate between the parities 0 and 1, from 0 on; a phase ends when all arrivals and all
// expected bytes have come. Waiting for parity 1 of a fresh barrier returns at once: a producer's
// first lap through a ring.
#pragma once

#include <cstdint>

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__

// By one thread; others see it after mbarrier_fence_init and a barrier of the block.
__device__ __forceinline__ void mbarrier_init(std::uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// Makes the initialised barriers visible to the copy engine.
__device__ __forceinline__ void mbarrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// At the same mbarrier of another block of the cluster.
__device__ __forceinline__ void mbarrier_arrive_in_block(std::uint64_t* barrier, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// Announces `bytes` of asynchronous copies, and arrives.
__device__ __forceinline__ void mbarrier_arrive_expect(std::uint64_t* barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Waits until the phase of this parity is over. try_wait sleeps for a while, and may return early.
__device__ __forceinline__ void mbarrier_wait(std::uint64_t* barrier, unsigned parity) {
  unsigned over;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (over == 0);
}

#else

inline void mbarrier_init(std::uint64_t* barrier, unsigned arrivals,
                          Where where = Where::current()) {
  initialise_mbarrier(barrier, arrivals, where);
}

inline void mbarrier_fence_init() {
  fence_mbarrier_init();
}

inline void mbarrier_arrive(std::uint64_t* barrier, Where where = Where::current()) {
  arrive_at_mbarrier(barrier, 0, where);
}

inline void mbarrier_arrive_in_block(std::uint64_t* barrier, unsigned rank,
                                     Where where = Where::current()) {
  arrive_at_mbarrier(static_cast<std::uint64_t*>(map_to_rank(barrier, rank, where)), 0, where);
}

inline void mbarrier_arrive_expect(std::uint64_t* barrier, unsigned bytes,
                                   Where where = Where::current()) {
  arrive_at_mbarrier(barrier, bytes, where);
}

inline void mbarrier_wait(std::uint64_t* barrier, unsigned parity, Where where = Where::current()) {
  wait_for_mbarrier(barrier, parity, where);
}

#endif

}  // namespace orchard::GPU_NAMESPACE
