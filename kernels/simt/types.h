// CUDA's vector types and special registers, for kernels compiled by the host compiler.
#pragma once

namespace orchard::simt {

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// The special registers of the thread that runs now. The multiprocessor writes them whenever it
// switches threads; a kernel reads them as on a GPU. (Of the model initial-exec: position-independent
// code would call a function for their addresses.)
[[gnu::tls_model("initial-exec")]] inline thread_local constinit uint3 threadIdx{};
[[gnu::tls_model("initial-exec")]] inline thread_local constinit uint3 blockIdx{};
[[gnu::tls_model("initial-exec")]] inline thread_local constinit dim3 blockDim{};
[[gnu::tls_model("initial-exec")]] inline thread_local constinit dim3 gridDim{};
inline constexpr int warpSize = 32;

}  // namespace orchard::simt
