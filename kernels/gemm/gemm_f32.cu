// Matrix products of f32 on any GPU, in full fp32: one fused multiply-add a product, in the order of
// k. The mode to compare with, not to be fast in.
//
// FLOPs 2·m·n·k on the FFMA units (19.5 TFLOP/s on an A100, 67 on an H100), which bound it: for each
// k a thread reads 16 floats of shared memory for 64 multiply-adds. Products of at most 16 rows or
// columns are bound by HBM, which delivers operands (F32Tile): their tiles are narrow, and four times as
// deep, since each step's loads must be in flight while the last step is summed.
#include <type_traits>

#include "kernels/device/stream.h"
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gemm/split_k.h"
#include "kernels/gpu/gpu_properties.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// The cut of a block's work. A thread computes [quads_m · 4, quads_n · 4] sums.
struct Config {
  int m, n, depth;  // of a step
  int quads_m, quads_n;
  int blocks_per_sm;

  constexpr TileSides sides() const { return {m, n}; }
  constexpr int threads() const { return m / (4 * quads_m) * (n / (4 * quads_n)); }
};

constexpr Config config_of(F32Tile tile) {
  switch (tile) {
    case F32Tile::square:
      return {.m = 128, .n = 128, .depth = 8, .quads_m = 2, .quads_n = 2, .blocks_per_sm = 1};
    case F32Tile::tall:
      return {.m = 128, .n = 16, .depth = 32, .quads_m = 1, .quads_n = 1, .blocks_per_sm = 2};
    case F32Tile::flat:
      return {.m = 16, .n = 128, .depth = 32, .quads_m = 1, .quads_n = 1, .blocks_per_sm = 2};
  }
  return {};
}

struct Operand {
  const float* data;            // [mn, k], or [k, mn] when mn-major
  std::int64_t stride;          // elements from row to row
  const int* source = nullptr;  // of a gathered operand: which rows; null: all, in order
};

// Floats of a row of an operand's tile. A warp stores 32 neighbours of rows in order, or, transposed,
// four of eight rows each, which then begin four banks apart: no two of its lanes meet in a bank.
constexpr int padded(Major major, int side) {
  return major == Major::k ? side + 4 : side;
}

template <F32Tile tile, Major a_major, Major b_major>
struct Step {
  alignas(16) float a[config_of(tile).depth][padded(a_major, config_of(tile).m)];
  alignas(16) float b[config_of(tile).depth][padded(b_major, config_of(tile).n)];
};

// A thread's part of the next step's tile [side, depth] of an operand, and where it goes.
template <Major major, int side, int depth, int threads>
struct Fetched {
  // Neighbouring threads take neighbours along the contiguous dimension; along k only eight, whose 32
  // bytes are a whole sector, so that the others' stores meet other banks.
  static constexpr int k_beside = major == Major::k ? 8 : threads / side;
  static constexpr int mn_beside = threads / k_beside;
  static constexpr int k_times = depth / k_beside, mn_times = side / mn_beside;
  static_assert(k_times * k_beside == depth && mn_times * mn_beside == side);
  using Rows = std::conditional_t<major == Major::k, NamedRows<side, k_beside, threads>,
                                  NamedRows<depth, mn_beside, threads>>;

  float value[mn_times][k_times];

  __device__ static int first_mn() {
    const int thread = static_cast<int>(threadIdx.x);
    return major == Major::k ? thread / k_beside : thread % side;
  }
  __device__ static int first_k() {
    const int thread = static_cast<int>(threadIdx.x);
    return major == Major::k ? thread % k_beside : thread / side;
  }

  __device__ void fetch(const Operand& x, const Span& mn_span, const Span& k_span) {
    const int mn = mn_span.first + first_mn(), k = k_span.first + first_k();
    const float* const first = x.data + (major == Major::k ? mn * x.stride + k : k * x.stride + mn);
#pragma unroll
    for (int i = 0; i < mn_times; ++i) {
#pragma unroll
      for (int j = 0; j < k_times; ++j) {
        const int down = i * mn_beside, right = j * k_beside;
        const float* const at =
            first + (major == Major::k ? down * x.stride + right : right * x.stride + down);
        value[i][j] = mn + down < mn_span.end && k + right < k_span.end ? load(at) : 0.0f;
      }
    }
  }

  // The same of rows that were looked up.
  __device__ void fetch(const Operand& x, const Rows& rows, const Span& cols) {
    const int col = cols.first + (major == Major::k ? first_k() : first_mn());
#pragma unroll
    for (int i = 0; i < mn_times; ++i) {
#pragma unroll
      for (int j = 0; j < k_times; ++j) {
        const int row = major == Major::k ? i : j;
        const int right = major == Major::k ? j * k_beside : i * mn_beside;
        value[i][j] = rows.has(row, 0) && col + right < cols.end
                          ? load(x.data + rows.at(row, 0) * x.stride + col + right)
                          : 0.0f;
      }
    }
  }

  __device__ void put(float (&shared)[depth][padded(major, side)]) const {
#pragma unroll
    for (int i = 0; i < mn_times; ++i) {
#pragma unroll
      for (int j = 0; j < k_times; ++j) {
        store_shared(&shared[first_k() + j * k_beside][first_mn() + i * mn_beside], value[i][j]);
      }
    }
  }
};

template <F32Tile tile, Major a_major, Major b_major, class Schedule>
__global__ void __launch_bounds__(config_of(tile).threads(), config_of(tile).blocks_per_sm)
    gemm_f32(Operand a, Operand b, Epilogue<float> out, Schedule schedule) {
  constexpr Config config = config_of(tile);
  constexpr int depth = config.depth, rows = 4 * config.quads_m, cols = 4 * config.quads_n;
  Work work;
  if (!schedule.find(static_cast<int>(blockIdx.x), config.sides(), work)) return;
  a.data += work.a;
  b.data += work.b;
  auto& shared = shared_storage<Step<tile, a_major, b_major>>();
  // A thread's rows and columns come in quads, and threads that are neighbours read neighbouring ones:
  // the next quad of the same thread lies behind those of all threads.
  constexpr int threads_n = config.n / cols;
  constexpr int next_row = config.m / config.quads_m, next_col = config.n / config.quads_n;
  const int first_row = static_cast<int>(threadIdx.x) / threads_n * 4;
  const int first_col = static_cast<int>(threadIdx.x) % threads_n * 4;
  float sums[rows][cols];
#pragma unroll
  for (int i = 0; i < rows; ++i) {
#pragma unroll
    for (int j = 0; j < cols; ++j) sums[i][j] = 0;
  }

  using FetchedA = Fetched<a_major, config.m, depth, config.threads()>;
  using FetchedB = Fetched<b_major, config.n, depth, config.threads()>;
  FetchedA next_a;
  FetchedB next_b;
  // Rows of a gathered a are those of every step, rows of a gathered b those of the next one.
  [[maybe_unused]] typename FetchedA::Rows a_rows;
  [[maybe_unused]] typename FetchedB::Rows b_rows;
  const auto look_up_step = [&](int k) {
    b_rows.look_up(b.source, {work.first_k + k, work.first_k + work.k});
  };
  if constexpr (Schedule::gathers == Gathers::a) {
    a_rows.look_up(a.source, {work.first_row + work.row, work.first_row + work.m});
  } else if constexpr (Schedule::gathers == Gathers::b) {
    look_up_step(0);
  }
  const auto fetch = [&](int k) {
    const Span height{work.row, work.m}, width{work.col, work.n}, rest{k, work.k};
    if constexpr (Schedule::gathers == Gathers::a) {
      next_a.fetch(a, a_rows, rest);
    } else {
      next_a.fetch(a, height, rest);
    }
    if constexpr (Schedule::gathers == Gathers::b) {
      next_b.fetch(b, b_rows, width);
      look_up_step(k + depth);
    } else {
      next_b.fetch(b, width, rest);
    }
  };
  fetch(0);
  for (int k = 0; k < work.k; k += depth) {
    __syncthreads();  // everybody is done with the last step
    next_a.put(shared.a);
    next_b.put(shared.b);
    __syncthreads();
    fetch(k + depth);
#pragma unroll
    for (int l = 0; l < depth; ++l) {
      Quad row[config.quads_m], col[config.quads_n];
#pragma unroll
      for (int i = 0; i < config.quads_m; ++i) {
        row[i] = load_shared_quad(&shared.a[l][first_row + i * next_row]);
      }
#pragma unroll
      for (int j = 0; j < config.quads_n; ++j) {
        col[j] = load_shared_quad(&shared.b[l][first_col + j * next_col]);
      }
#pragma unroll
      for (int i = 0; i < rows; ++i) {
#pragma unroll
        for (int j = 0; j < cols; ++j) {
          sums[i][j] = fmaf(row[i / 4].value[i % 4], col[j / 4].value[j % 4], sums[i][j]);
        }
      }
    }
  }

#pragma unroll 1
  for (int i = 0; i < rows; ++i) {
    const int row = work.row + first_row + i / 4 * next_row + i % 4;
    if (row >= work.m) break;
    Quad quad[config.quads_n];
    take_turn<rows>(i, [&](int turn) {
#pragma unroll
      for (int j = 0; j < cols; ++j) quad[j / 4].value[j % 4] = sums[turn][j];
    });
    const std::int64_t row_begin = work.c + std::int64_t{row} * work.n;
#pragma unroll
    for (int j = 0; j < config.quads_n; ++j) {
      finish_sums(out, row_begin, work.col + first_col + j * next_col, work.n, quad[j]);
    }
  }
}

Operand operand(const ConstTensor& x, const ConstTensor& source = {}) {
  return {x.data<float>(), x.dim(-1), source.data<std::int32_t>()};
}

// A product as the kernel sees it.
template <class Schedule>
struct Launch {
  Stream& stream;
  Operand a, b;
  Epilogue<float> out;
  Schedule schedule;

  template <F32Tile tile, Major a_major, Major b_major>
  void with() const {
    constexpr Config config = config_of(tile);
    launch(stream,
           {.kernel = "gemm_f32",
            .grid = {schedule.blocks(config.sides())},
            .block = {static_cast<unsigned>(config.threads())},
            .shared_bytes = sizeof(Step<tile, a_major, b_major>)},
           gemm_f32<tile, a_major, b_major, Schedule>, a, b, out, schedule);
  }

  template <Major a_major, Major b_major>
  void in(F32Tile tile) const {
    switch (tile) {
      case F32Tile::square:
        return with<F32Tile::square, a_major, b_major>();
      case F32Tile::tall:
        return with<F32Tile::tall, a_major, b_major>();
      case F32Tile::flat:
        return with<F32Tile::flat, a_major, b_major>();
    }
  }
};

int slices_for(const Gemm& op, F32Tile tile, int multiprocessors) {
  const Config config = config_of(tile);
  const auto [m, n, k, batch] = sizes_of(op);
  const std::int64_t tiles = batch * tiles_in(m, config.m) * tiles_in(n, config.n);
  return choose_slices(tiles, k, {config.blocks_per_sm * multiprocessors, ffma_overhead});
}

}  // namespace

void run_f32(Stream& stream, const Gemm& op) {
  if (op.c.numel() == 0) return;
  const F32Tile tile = choose_f32_tile(op.c.dim(-2), op.c.dim(-1));
  const int slices = slices_for(op, tile, gpu_properties(stream).multiprocessors);
  run_sliced<float>(
      stream, op, slices,
      [&](const Tensor&, const Epilogue<float>& out, const DenseSchedule& schedule) {
        const Launch<DenseSchedule> launch{stream, operand(op.a), operand(op.b), out, schedule};
        const bool a_is_mn = op.transpose_a == Transpose::yes;
        const bool b_is_k = op.transpose_b == Transpose::yes;
        if (a_is_mn && b_is_k) return launch.in<Major::mn, Major::k>(tile);
        if (a_is_mn) return launch.in<Major::mn, Major::mn>(tile);
        if (b_is_k) return launch.in<Major::k, Major::k>(tile);
        launch.in<Major::k, Major::mn>(tile);
      });
}

void run_f32(Stream& stream, const GroupedGemm& op) {
  if (op.c.numel() == 0) return;
  const Launch<GroupedRowsSchedule> launch{stream, operand(op.a, op.source), operand(op.b),
                                           epilogue<float>(op.c, {}, op.accumulate, op.epilogue),
                                           schedule_of(op)};
  if (op.transpose_b == Transpose::yes) {
    return launch.with<F32Tile::square, Major::k, Major::k>();
  }
  launch.with<F32Tile::square, Major::k, Major::mn>();
}

void run_f32(Stream& stream, const GroupedGemmWeightGradient& op) {
  if (op.d_b.numel() == 0) return;
  const Launch<GroupedDepthSchedule> launch{stream, operand(op.a), operand(op.b, op.source),
                                            epilogue<float>(op.d_b, {}, Accumulate::add),
                                            schedule_of(op)};
  launch.with<F32Tile::square, Major::mn, Major::mn>();
}

}  // namespace orchard::GPU_NAMESPACE
