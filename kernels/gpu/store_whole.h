// A store that stays one instruction. Of `store` nvcc makes several where it forgets the alignment of a
// vector whose values come out of an unrolled loop: each then touches every sector of the whole.
#pragma once

#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

#ifdef __CUDACC__
template <class T>
__device__ __forceinline__ void store_whole(T* address, const T& value) {
  if constexpr (sizeof(T) >= 8) {
    __stwb(address, value);  // write-back is what a store without a name of its cache policy does
  } else {
    store(address, value);
  }
}
#else
template <class T>
void store_whole(T* address, const std::type_identity_t<T>& value, Where where = Where::current()) {
  store(address, value, where);
}
#endif

}  // namespace orchard::GPU_NAMESPACE
