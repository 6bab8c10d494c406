// The one header of a kernel file. Under nvcc it is CUDA; under the host compiler it is the SIMT
// emulator, which executes the same source on the CPU. Both offer
//
//   __global__, __device__, __launch_bounds__, threadIdx, blockIdx, blockDim, gridDim, uint4, ...
//   __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync, __any_sync, __all_sync, __match_any_sync,
//   __match_all_sync, __activemask
//   atomicAdd on integers, __popc, __ffs
//   launch(stream, shape, kernel, arguments...)   instead of <<<>>>
//   shared_storage<Storage>()                     the block's shared memory, instead of __shared__
//   load(p), load_readonly(p), store(p, value)    global memory, one instruction of sizeof(T) bytes
//   load_shared(p), store_shared(p, value)        the same for shared memory
//   expf, logf, sqrtf, rsqrtf, fmaf, fmaxf, __fdividef, ...      as CUDA has them
//
// A kernel file puts everything into namespace orchard::GPU_NAMESPACE (cuda or simt), so that one
// program can hold both compilations. Global memory is accessed through load and store alone: that
// is where the emulator checks bounds and counts sectors. Instructions that CUDA C++ has no name for
// are in kernels/ptx/. docs/simt.md has the rules in full.
#pragma once

#ifdef __CUDACC__
#define GPU_NAMESPACE cuda
#include "kernels/cuda/language.h"
#else
#define GPU_NAMESPACE simt
#include "kernels/simt/language.h"
#endif

#include "kernels/gpu/launch_shape.h"
