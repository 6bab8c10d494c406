// Holds VALUES, 96 when it is to spill, in the 32 registers that two blocks of 1024 threads on one SM leave to a thread.
__global__ void __launch_bounds__(1024, 2) spill(float* values) {
  float held[VALUES];
#pragma unroll
  for (int i = 0; i < VALUES; ++i) held[i] = values[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < VALUES; ++i)
    values[i * 7 % VALUES * 1024 + threadIdx.x] = held[i] * held[VALUES - 1 - i];
}
