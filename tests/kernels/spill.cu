// Holds 96 values in the 32 registers that two blocks of 1024 threads on one SM leave to a thread.
__global__ void __launch_bounds__(1024, 2) spill(float* values) {
  float held[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) held[i] = values[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i * 7 % 96 * 1024 + threadIdx.x] = held[i] * held[95 - i];
}
