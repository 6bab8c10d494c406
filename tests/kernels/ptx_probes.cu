// Kernels that do one thing with one instruction, so that the emulator and a GPU can be asked the
// same questions. ptx_test.cpp includes this file for the emulator; nvcc compiles it for GPUs.
#include "kernels/gpu/gpu.h"
#include "kernels/ptx/cp_async.h"
#include "kernels/ptx/ldmatrix.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/mma.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"
#include "tests/kernels/ptx_probes.h"

namespace orchard::GPU_NAMESPACE {
namespace {

__global__ void multiply(const int* a, const int* b, float* d) {
  const unsigned lane = threadIdx.x;
  unsigned a_registers[4];
  float d_registers[4];
  for (int i = 0; i < 4; ++i) {
    a_registers[i] = static_cast<unsigned>(load(a + 4 * lane + i));
    d_registers[i] = load(d + 4 * lane + i);
  }
  mma_m16n8k16_bf16(d_registers, a_registers, static_cast<unsigned>(load(b + 2 * lane)),
                    static_cast<unsigned>(load(b + 2 * lane + 1)));
  for (int i = 0; i < 4; ++i) store(d + 4 * lane + i, d_registers[i]);
}

struct Matrices {
  unsigned word[4 * 8 * 4];  // 32 rows of 16 bytes
};

// Word w of the matrices is its own index in either half.
template <int matrices, bool transposed>
__global__ void load_matrices(const int* row_of_lane, int* registers) {
  auto& shared = shared_storage<Matrices>();
  const unsigned lane = threadIdx.x;
  for (unsigned w = lane; w < 128; w += 32) {
    store_shared(shared.word + w, 2 * w | (2 * w + 1) << 16);
  }
  __syncthreads();
  unsigned out[matrices];
  const unsigned* const row = shared.word + 4 * load(row_of_lane + lane);
  if constexpr (transposed) {
    ldmatrix_trans(out, row);
  } else {
    ldmatrix(out, row);
  }
  for (int i = 0; i < matrices; ++i) {
    store(registers + matrices * lane + i, static_cast<int>(out[i]));
  }
}

struct Copied {
  alignas(16) std::uint8_t byte[32 * 16];
};

template <int bytes>
__device__ void copy_one(void* shared, const void* global, unsigned source_bytes) {
  if constexpr (bytes == 16) {
    cp_async_16(shared, global, source_bytes);
  } else {
    cp_async_small<bytes>(shared, global, source_bytes);
  }
}

// Lane l copies one unit, of which it reads l % (bytes + 1) bytes.
template <int bytes>
__global__ void copy_units(const std::uint8_t* in, std::uint8_t* out) {
  auto& shared = shared_storage<Copied>();
  const unsigned lane = threadIdx.x;
  copy_one<bytes>(shared.byte + bytes * lane, in + bytes * lane, lane % (bytes + 1));
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < bytes; ++i) {
    store(out + bytes * lane + i, load_shared(shared.byte + bytes * lane + i));
  }
}

template <int n>
struct Operands {
  alignas(1024) bf16 a[64 * 64];
  alignas(1024) bf16 b[64 * n];
  std::uint64_t arrived;
};

template <int n, Transposed a_transposed, Transposed b_transposed>
__global__ void __launch_bounds__(128)
    multiply_group(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                   int a_col, float* d) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr unsigned box_bytes = 64 * 64 * sizeof(bf16);
  auto& shared = shared_storage<Operands<n>>();
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    mbarrier_init(&shared.arrived, 1);
    mbarrier_fence_init();
  }
  __syncthreads();
  if (thread == 0) {
    mbarrier_arrive_expect(&shared.arrived, sizeof shared.a + sizeof shared.b);
    tma_load(shared.a, a, a_col, 0, 0, &shared.arrived);
    for (int box = 0; box < n / 64; ++box) {
      bf16* const to = shared.b + box * 64 * 64;
      if constexpr (b_transposed == Transposed::yes) {
        tma_load(to, b, 64 * box, 0, 0, &shared.arrived);
      } else {
        tma_load(to, b, 0, 64 * box, 0, &shared.arrived);
      }
    }
  }
  mbarrier_wait(&shared.arrived, 0);

  float sums[n / 2];
  const int warp = thread / 32, lane = thread % 32;
  const auto element = [&](int i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
    return d + row * n + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
  };
#pragma unroll
  for (int i = 0; i < n / 2; ++i) sums[i] = load(element(i));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const unsigned a_step = a_transposed == Transposed::yes ? 2048 : 32;
    const unsigned b_step = b_transposed == Transposed::yes ? 2048 : 32;
    wgmma_m64k16<a_transposed, b_transposed>(
        sums, wgmma_descriptor(shared_address(shared.a) + a_step * step, box_bytes),
        wgmma_descriptor(shared_address(shared.b) + b_step * step, box_bytes), true);
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < n / 2; ++i) store(element(i), sums[i]);
#endif
}

template <class... Parameters, class... Arguments>
void probe(Stream& stream, std::size_t shared_bytes, void (*kernel)(Parameters...),
           Arguments... arguments) {
  launch(stream, {.kernel = "probe", .block = {32}, .shared_bytes = shared_bytes}, kernel,
         arguments...);
}

}  // namespace

void run_probe(Stream& stream, const MmaProbe& p) {
  probe(stream, 0, multiply, p.a.data<std::int32_t>(), p.b.data<std::int32_t>(), p.d.data<float>());
}

void run_probe(Stream& stream, const LoadMatrixProbe& p) {
  const auto* const rows = p.row_of_lane.data<std::int32_t>();
  auto* const registers = p.registers.data<std::int32_t>();
  const auto with = [&](auto plain, auto transposed) {
    probe(stream, sizeof(Matrices), p.transposed ? transposed : plain, rows, registers);
  };
  if (p.matrices == 1) with(load_matrices<1, false>, load_matrices<1, true>);
  if (p.matrices == 2) with(load_matrices<2, false>, load_matrices<2, true>);
  if (p.matrices == 4) with(load_matrices<4, false>, load_matrices<4, true>);
}

void run_probe(Stream& stream, const CopyProbe& p) {
  const auto* const in = p.in.data<std::uint8_t>();
  auto* const out = p.out.data<std::uint8_t>();
  if (p.bytes == 4) probe(stream, sizeof(Copied), copy_units<4>, in, out);
  if (p.bytes == 8) probe(stream, sizeof(Copied), copy_units<8>, in, out);
  if (p.bytes == 16) probe(stream, sizeof(Copied), copy_units<16>, in, out);
}

namespace {

template <int n, Transposed a_transposed, Transposed b_transposed>
void launch_wgmma(Stream& stream, const WgmmaProbe& p) {
  const TensorMap a = make_tensor_map({p.a.raw(), p.a.dim(1), p.a.dim(0), 1, 64, 64});
  const TensorMap b = make_tensor_map({p.b.raw(), p.b.dim(1), p.b.dim(0), 1, 64, 64});
  launch(stream, {.kernel = "probe", .block = {128}, .shared_bytes = sizeof(Operands<n>)},
         multiply_group<n, a_transposed, b_transposed>, a, b, p.a_col, p.d.data<float>());
}

template <int n>
void launch_wgmma(Stream& stream, const WgmmaProbe& p) {
  constexpr Transposed no = Transposed::no, yes = Transposed::yes;
  if (p.a_transposed && p.b_transposed) return launch_wgmma<n, yes, yes>(stream, p);
  if (p.a_transposed) return launch_wgmma<n, yes, no>(stream, p);
  if (p.b_transposed) return launch_wgmma<n, no, yes>(stream, p);
  launch_wgmma<n, no, no>(stream, p);
}

}  // namespace

void run_probe(Stream& stream, const WgmmaProbe& p) {
  if (p.n == 64) launch_wgmma<64>(stream, p);
  if (p.n == 128) launch_wgmma<128>(stream, p);
  if (p.n == 256) launch_wgmma<256>(stream, p);
}

}  // namespace orchard::GPU_NAMESPACE
