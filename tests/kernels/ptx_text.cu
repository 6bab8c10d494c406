// A kernel for every wrapper of kernels/ptx, whose PTX ptx_text_test reads. Inputs are parameters or
// loaded from `memory`, outputs are stored there, in order: so each register of an instruction can be
// traced to its operand.
#include "kernels/ptx/barrier.h"
#include "kernels/ptx/bulk_copy.h"
#include "kernels/ptx/cluster.h"
#include "kernels/ptx/convert.h"
#include "kernels/ptx/cp_async.h"
#include "kernels/ptx/elect.h"
#include "kernels/ptx/exp2.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/mma.h"
#include "kernels/ptx/stmatrix.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"

namespace orchard::cuda {

template <int count>
__device__ void store_all(unsigned* memory, const unsigned (&values)[count]) {
  for (int i = 0; i < count; ++i) memory[i] = values[i];
}

// The names are extern "C", so that they can be found in the text.
extern "C" {

__global__ void mma_m16n8k16(float* memory, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                             unsigned b0, unsigned b1) {
  float d[4] = {memory[0], memory[1], memory[2], memory[3]};
  mma_m16n8k16_bf16(d, {a0, a1, a2, a3}, b0, b1);
  for (int i = 0; i < 4; ++i) memory[i] = d[i];
}

__global__ void ldmatrix_x1(unsigned* memory, const void* row) {
  unsigned r[1];
  ldmatrix(r, row);
  store_all(memory, r);
}
__global__ void ldmatrix_x2(unsigned* memory, const void* row) {
  unsigned r[2];
  ldmatrix(r, row);
  store_all(memory, r);
}
__global__ void ldmatrix_x4(unsigned* memory, const void* row) {
  unsigned r[4];
  ldmatrix(r, row);
  store_all(memory, r);
}
__global__ void ldmatrix_x1_trans(unsigned* memory, const void* row) {
  unsigned r[1];
  ldmatrix_trans(r, row);
  store_all(memory, r);
}
__global__ void ldmatrix_x2_trans(unsigned* memory, const void* row) {
  unsigned r[2];
  ldmatrix_trans(r, row);
  store_all(memory, r);
}
__global__ void ldmatrix_x4_trans(unsigned* memory, const void* row) {
  unsigned r[4];
  ldmatrix_trans(r, row);
  store_all(memory, r);
}

__global__ void stmatrix_all(void* row, unsigned a, unsigned b, unsigned c, unsigned d) {
  stmatrix(row, {a});
  stmatrix(row, {a, b});
  stmatrix(row, {a, b, c, d});
  stmatrix_trans(row, {a});
  stmatrix_trans(row, {a, b});
  stmatrix_trans(row, {a, b, c, d});
}

__global__ void named_barriers(unsigned number, unsigned threads) {
  bar_sync(number, threads);
  bar_arrive(number, threads);
}

__global__ void clusters(unsigned* memory, unsigned* own, unsigned rank) {
  cluster_barrier_arrive();
  cluster_barrier_wait();
  memory[0] = cluster_rank();
  memory[1] = cluster_blocks();
  *reinterpret_cast<unsigned**>(memory + 2) = in_block(own, rank);
}

__global__ void election(unsigned* memory) {
  memory[0] = elect_one() ? 1 : 0;
}

__global__ void exponential(float* memory, float x) {
  memory[0] = fast_exp2(x);
}

__global__ void two_floats(unsigned* memory, float low, float high) {
  memory[0] = pack_bf16x2(low, high);
}

__global__ void bulk_copies(void* shared, void* global, unsigned bytes, std::uint64_t* barrier) {
  bulk_load(shared, global, bytes, barrier);
  bulk_store(global, shared, bytes);
  bulk_commit();
  bulk_wait<2>();
  bulk_wait_read<1>();
}

__global__ void cp_async_copies(void* to, const void* from, unsigned bytes) {
  cp_async_16(to, from, bytes);
  cp_async_small<8>(to, from, bytes);
  cp_async_small<4>(to, from, bytes);
  cp_async_commit();
  cp_async_wait<2>();
  cp_async_wait_all();
}

__global__ void mbarriers(std::uint64_t* barrier, unsigned number) {
  mbarrier_init(barrier, number);
  mbarrier_fence_init();
  mbarrier_arrive(barrier);
  mbarrier_arrive_in_block(barrier, number);
  mbarrier_arrive_expect(barrier, number);
  mbarrier_wait(barrier, number);
}

__global__ void tma(const __grid_constant__ TensorMap map, void* to, int col, int row, int matrix,
                    std::uint64_t* barrier, unsigned ranks) {
  tma_prefetch(map);
  tma_load(to, map, col, row, matrix, barrier);
  tma_load_multicast(to, map, col, row, matrix, barrier, ranks);
  tma_store(map, to, col, row, matrix);
  tma_add(map, to, col, row, matrix);
  tma_prefetch_box(map, col, row, matrix);
}

__global__ void __launch_bounds__(128)
    wgmma_n64(float* memory, std::uint64_t a, std::uint64_t b, unsigned accumulate) {
  float d[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) d[i] = memory[i];
  wgmma_m64k16<Transposed::no, Transposed::yes>(d, a, b, accumulate);
#pragma unroll
  for (int i = 0; i < 32; ++i) memory[i] = d[i];
}

__global__ void __launch_bounds__(128)
    wgmma_n64_registers(float* memory, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                        std::uint64_t b, unsigned accumulate) {
  float d[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) d[i] = memory[i];
  wgmma_m64k16<Transposed::yes>(d, {a0, a1, a2, a3}, b, accumulate);
#pragma unroll
  for (int i = 0; i < 32; ++i) memory[i] = d[i];
}

__global__ void __launch_bounds__(128)
    wgmma_n128(float* memory, std::uint64_t a, std::uint64_t b, unsigned accumulate) {
  float d[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) d[i] = memory[i];
  fence_proxy_async();
  wgmma_fence();
  wgmma_m64k16<Transposed::no, Transposed::yes>(d, a, b, accumulate);
  wgmma_commit();
  wgmma_wait<1>();
#pragma unroll
  for (int i = 0; i < 64; ++i) memory[i] = d[i];
}

__global__ void __launch_bounds__(128)
    wgmma_n128_registers(float* memory, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                         std::uint64_t b, unsigned accumulate) {
  float d[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) d[i] = memory[i];
  wgmma_m64k16<Transposed::yes>(d, {a0, a1, a2, a3}, b, accumulate);
#pragma unroll
  for (int i = 0; i < 64; ++i) memory[i] = d[i];
}

__global__ void __launch_bounds__(128)
    wgmma_n256(float* memory, std::uint64_t a, std::uint64_t b, unsigned accumulate) {
  float d[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) d[i] = memory[i];
  shrink_registers<40>();
  grow_registers<232>();
  wgmma_m64k16<Transposed::yes, Transposed::no>(d, a, b, accumulate);
#pragma unroll
  for (int i = 0; i < 128; ++i) memory[i] = d[i];
}

}  // extern "C"

}  // namespace orchard::cuda
