// Matrix products of f32 on any GPU, in full fp32: one fused multiply-add a product, in the order of
// k. The mode to compare with, not to be fast in.
//
// FLOPs 2·m·n·k on the FFMA units (19.5 TFLOP/s on an A100, 67 on an H100), which bound it: for each
// k a thread reads 16 floats of shared memory for 64 multiply-adds.
#include "kernels/device/device.h"
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/schedule.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr TileSides tile{128, 128};
constexpr int depth = 8;                           // of a step in k
constexpr int threads = 256;                       // 16 x 16, each with 8 x 8 sums
constexpr int per_thread = 128 * depth / threads;  // elements of an operand's tile
constexpr int padded = 128 + 4;  // floats of a row: transposed stores meet fewer banks

// An operand in either orientation: element [mn, k] lies at mn · mn_stride + k · k_stride.
struct StridedOperand {
  const float* data;
  std::int64_t mn_stride, k_stride;
};

struct Step {
  alignas(16) float a[depth][padded];
  alignas(16) float b[depth][padded];
};

// A thread's part of the next step's tile of an operand, and where it goes.
struct Fetched {
  float value[per_thread];

  // Neighbouring threads take neighbours along the contiguous dimension.
  __device__ static int mn_of(int i, bool k_is_contiguous) {
    const int at = static_cast<int>(threadIdx.x) + i * threads;
    return k_is_contiguous ? at / depth : at % 128;
  }
  __device__ static int k_of(int i, bool k_is_contiguous) {
    const int at = static_cast<int>(threadIdx.x) + i * threads;
    return k_is_contiguous ? at % depth : at / 128;
  }

  __device__ void fetch(const StridedOperand& x, int mn, int mn_end, int k, int k_end) {
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
      const int row = mn + mn_of(i, x.k_stride == 1), col = k + k_of(i, x.k_stride == 1);
      value[i] =
          row < mn_end && col < k_end ? load(x.data + row * x.mn_stride + col * x.k_stride) : 0.0f;
    }
  }

  __device__ void put(float (&shared)[depth][padded], const StridedOperand& x) const {
#pragma unroll
    for (int i = 0; i < per_thread; ++i) {
      store_shared(&shared[k_of(i, x.k_stride == 1)][mn_of(i, x.k_stride == 1)], value[i]);
    }
  }
};

template <class Schedule>
__global__ void __launch_bounds__(threads)
    gemm_f32(StridedOperand a, StridedOperand b, Epilogue<float> out, Schedule schedule) {
  Work work;
  if (!schedule.find(static_cast<int>(blockIdx.x), tile, work)) return;
  a.data += work.a;
  b.data += work.b;
  auto& shared = shared_storage<Step>();
  // A thread's rows and columns: four at `first`, four 64 further on, so that the 16 bytes that
  // neighbours read are neighbours.
  const int first_row = static_cast<int>(threadIdx.x) / 16 * 4;
  const int first_col = static_cast<int>(threadIdx.x) % 16 * 4;
  float sums[8][8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[i][j] = 0;
  }

  Fetched next_a, next_b;
  next_a.fetch(a, work.row, work.m, 0, work.k);
  next_b.fetch(b, work.col, work.n, 0, work.k);
  for (int k = 0; k < work.k; k += depth) {
    __syncthreads();  // everybody is done with the last step
    next_a.put(shared.a, a);
    next_b.put(shared.b, b);
    __syncthreads();
    next_a.fetch(a, work.row, work.m, k + depth, work.k);
    next_b.fetch(b, work.col, work.n, k + depth, work.k);
#pragma unroll
    for (int l = 0; l < depth; ++l) {
      const Quad rows[2] = {load_shared_quad(&shared.a[l][first_row]),
                            load_shared_quad(&shared.a[l][first_row + 64])};
      const Quad cols[2] = {load_shared_quad(&shared.b[l][first_col]),
                            load_shared_quad(&shared.b[l][first_col + 64])};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          sums[i][j] = fmaf(rows[i / 4].value[i % 4], cols[j / 4].value[j % 4], sums[i][j]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = work.row + first_row + i / 4 * 64 + i % 4;
    if (row >= work.m) continue;
    const std::int64_t row_begin = work.c + std::int64_t{row} * work.n;
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      write_sums(out, row_begin, work.col + first_col + j / 4 * 64, work.n,
                 Quad{{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}});
    }
  }
}

StridedOperand operand(const ConstTensor& x, bool k_is_contiguous) {
  const std::int64_t row = x.dim(-1);
  return {x.data<float>(), k_is_contiguous ? row : 1, k_is_contiguous ? 1 : row};
}

template <class Schedule>
void run_product(Stream& stream, StridedOperand a, StridedOperand b, const Epilogue<float>& out,
                 const Schedule& schedule) {
  launch(stream,
         {.kernel = "gemm_f32",
          .grid = {schedule.blocks(tile)},
          .block = {threads},
          .shared_bytes = sizeof(Step)},
         gemm_f32<Schedule>, a, b, out, schedule);
}

}  // namespace

void run_f32(Stream& stream, const Gemm& op) {
  if (op.c.numel() == 0) return;
  run_product(stream, operand(op.a, op.transpose_a == Transpose::no),
              operand(op.b, op.transpose_b == Transpose::yes),
              epilogue<float>(op.c, op.bias, op.accumulate), schedule_of(op));
}

void run_f32(Stream& stream, const GroupedGemm& op) {
  if (op.c.numel() == 0) return;
  run_product(stream, operand(op.a, true), operand(op.b, op.transpose_b == Transpose::yes),
              epilogue<float>(op.c, {}, op.accumulate), schedule_of(op));
}

void run_f32(Stream& stream, const GroupedGemmWeightGradient& op) {
  if (op.d_b.numel() == 0) return;
  run_product(stream, operand(op.a, false), operand(op.b, false),
              epilogue<float>(op.d_b, {}, Accumulate::add), schedule_of(op));
}

}  // namespace orchard::GPU_NAMESPACE
