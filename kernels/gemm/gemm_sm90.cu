// Matrix products of bf16 on sm_90a (H100, H200): dense, grouped by rows, grouped by depth.
//
// FLOPs 2·m·n·k, on the tensor cores: 4096 a clock and SM. Bound: tensor cores, which wgmma feeds from
// shared memory; a warpgroup's 64 x 256 x 16 reads (64 + 256)·16 elements in 128 clocks, 80 of the 128
// bytes a clock that shared memory delivers (96 at 128 columns, and 128 at 64). A block asks the L2 for
// 2·(128 + n) bytes a k, which is 10 TB/s on an H100 with n = 256 at full speed: with narrower tiles the
// L2 is the bound. Weight gradients of short k are bound by HBM: c is read and written once.
//
// Blocks are persistent, one an SM, and go through tiles. One warp asks the copy engine for stages of
// 64 in k, as far ahead as the ring is long; two warpgroups multiply 64 rows each, and leave their tile to
// the copy engine (tile_store.h) while the copies of the next one already run. Stages change hands through
// two mbarriers each: `full` counts bytes, `empty` the consumers' warps. Registers go to where the sums
// are: 128 of a consumer thread's 232.
//
// Two blocks may share columns, as a cluster: their tiles lie one below the other, and each brings half
// of their common operand b to both, which takes a third (n = 256) or a quarter of the L2's reads away.
#include <algorithm>

#include "kernels/device/device.h"
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gemm/split_k.h"
#include "kernels/gemm/tile_store.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/ptx/cluster.h"
#include "kernels/ptx/elect.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int rows = wide_tile_rows;  // 64 for each consumer
constexpr int depth = 64;             // of a stage: 128 bytes, the width of the swizzle
constexpr int box = 64;               // sides of the boxes of operands that are not k-major
constexpr int warpgroup = 128;
constexpr int threads = 3 * warpgroup;  // a producer and two consumers
constexpr int consumer_warps = 8;

struct WideConfig {
  int n;
  int stages;
  int boxes;  // that a warp may have on the way to c
};

constexpr WideConfig config_of(WideTile tile) {
  switch (tile) {
    case WideTile::n_256:
      return {.n = 256, .stages = 4, .boxes = 2};  // 48 KB a stage
    case WideTile::n_128:
      return {.n = 128, .stages = 5, .boxes = 4};  // 32 KB a stage; all of a tile of f32
  }
  return {};
}

template <WideTile tile>
struct Ring {
  static constexpr int n = config_of(tile).n, stages = config_of(tile).stages;
  static constexpr int boxes = config_of(tile).boxes;
  alignas(1024) bf16 a[stages][rows * depth];
  alignas(1024) bf16 b[stages][n * depth];
  StoreBox c[consumer_warps][boxes];
  alignas(1024) uint4 zeros[warpgroup];  // the 2 KB of one step's operand
  std::uint64_t full[stages];
  std::uint64_t empty[stages];
};
static_assert(sizeof(Ring<WideTile::n_256>) <= 227 * 1024);
static_assert(sizeof(Ring<WideTile::n_128>) <= 227 * 1024);

// Where sums go, and how.
struct Destination {
  Epilogue<bf16> values;
  Writing writing;
};

// Sums of all of k, and those of slices.
struct Output {
  Destination c, partial;
};
struct OutputMaps {
  const TensorMap& c;
  const TensorMap& partial;
};

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where a thread is in the ring. Parities alternate from lap to lap.
template <int stages>
struct RingPosition {
  int stage = 0;
  unsigned parity = 0;

  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// A block among those that share columns: one alone, or one of two.
struct Place {
  int rank, blocks;

  __device__ int first_tile() const { return static_cast<int>(blockIdx.x) / blocks; }
  __device__ int step() const { return static_cast<int>(gridDim.x) / blocks; }
};

__device__ Place own_place() {
  return {static_cast<int>(cluster_rank()), static_cast<int>(cluster_blocks())};
}

// The block's tile: one of the shared tile's, which is `blocks` times as high.
template <class Schedule>
__device__ bool find_work(const Schedule& schedule, const Place& place, int number, int n,
                          Work& work) {
  if (!schedule.find(number, {rows * place.blocks, n}, work)) return false;
  work.row += rows * place.rank;
  return true;
}

// Asks for [side, depth] of an operand, from [mn, k] of matrix `matrix` on.
template <Transposed transposed, int side>
__device__ void load_operand(bf16* to, const TensorMap& map, int mn, int k, int matrix,
                             std::uint64_t* full) {
  if constexpr (transposed == Transposed::no) {
    tma_load(to, map, k, mn, matrix, full);
  } else {
#pragma unroll
    for (int i = 0; i < side / box; ++i) {
      tma_load(to + i * box * depth, map, mn + i * box, k, matrix, full);
    }
  }
}

// Half of the same, for both blocks of a cluster.
template <Transposed transposed, int side>
__device__ void load_half(bf16* to, const TensorMap& map, int mn, int k, int matrix,
                          std::uint64_t* full, int rank) {
  constexpr unsigned both = 3;
  const int first = rank * side / 2;
  if constexpr (transposed == Transposed::no) {
    tma_load_multicast(to + first * depth, map, k, mn + first, matrix, full, both);
  } else {
#pragma unroll
    for (int i = 0; i < side / 2 / box; ++i) {
      const int at = first + i * box;
      tma_load_multicast(to + at * depth, map, mn + at, k, matrix, full, both);
    }
  }
}

template <Transposed transposed>
__device__ std::uint64_t operand_descriptor(const bf16* operand, int step) {
  constexpr unsigned step_bytes = transposed == Transposed::yes ? 16 * 128 : 16 * sizeof(bf16);
  constexpr unsigned box_bytes = box * depth * sizeof(bf16);
  return wgmma_descriptor(shared_address(operand) + step_bytes * static_cast<unsigned>(step),
                          box_bytes);
}

// Of the boxes of c that a tile is added to, those whose turn it is at a step: in the last steps of k, so
// that they come in time and do not crowd out operands.
template <int n>
struct BoxesAhead {
  static constexpr int cols = StoreBox::cols<float>, in_row = n / cols;
  static constexpr int count = rows / StoreBox::rows * in_row;
  static constexpr int lead = 8;  // steps
  int next = 0;

  __device__ void fetch(const TensorMap& c, const Work& work, int step) {
    const int steps = tiles_in(work.k, depth), first = steps > lead ? steps - lead : 0;
    if (step < first) return;
    const int until = count * (step - first + 1) / (steps - first);
    for (; next < until; ++next) {
      const int row = work.row + next / in_row * StoreBox::rows;
      if (row < work.m) {
        tma_prefetch_box(c, work.col + next % in_row * cols, work.c_row + row, work.c_matrix);
      }
    }
  }
};

// One warp; one of its lanes issues.
template <WideTile tile, Transposed a_transposed, Transposed b_transposed, class Schedule>
__device__ void produce(Ring<tile>& ring, const TensorMap& a, const TensorMap& b,
                        const TensorMap& c, const Output& out, const Schedule& schedule) {
  using Shared = Ring<tile>;
  constexpr unsigned stage_bytes = sizeof ring.a[0] + sizeof ring.b[0];
  const bool leader = elect_one();
  const Place place = own_place();
  const int tiles = static_cast<int>(schedule.blocks({rows * place.blocks, Shared::n}));
  const bool adds_to_c = out.c.writing == Writing::prefetched && out.c.values.add;
  RingPosition<Shared::stages> at;
  for (int number = place.first_tile(); number < tiles; number += place.step()) {
    Work work;
    if (!find_work(schedule, place, number, Shared::n, work) || !leader) continue;
    BoxesAhead<Shared::n> ahead;
    for (int k = 0; k < work.k; k += depth, at.advance()) {
      std::uint64_t* const full = &ring.full[at.stage];
      mbarrier_wait(&ring.empty[at.stage], at.parity ^ 1);
      mbarrier_arrive_expect(full, stage_bytes);
      load_operand<a_transposed, rows>(ring.a[at.stage], a, work.first_row + work.row,
                                       work.first_k + k, 0, full);
      if (place.blocks == 1) {
        load_operand<b_transposed, Shared::n>(ring.b[at.stage], b, work.col, work.first_k + k,
                                              work.b_matrix, full);
      } else {
        load_half<b_transposed, Shared::n>(ring.b[at.stage], b, work.col, work.first_k + k,
                                           work.b_matrix, full, place.rank);
      }
      if (adds_to_c && !work.partial) ahead.fetch(c, work, k / depth);
    }
  }
}

// A warp's 16 rows of a tile, from `row` on.
template <int n, int boxes>
__device__ void write_rows(const OutputMaps& maps, const Output& out, const Work& work,
                           BoxRing<boxes>& own, const float (&sums)[n / 2], int row) {
  const Destination to = work.partial ? out.partial : out.c;
  if (to.writing == Writing::direct) {
#pragma unroll
    for (int j = 0; j < n / 8; j += 2) {
      write_fragments(to.values, work, sums + 4 * j, sums + 4 * j + 4, row, work.col + 8 * j);
    }
    return;
  }
  const TensorMap& map = work.partial ? maps.partial : maps.c;
  const StoreRows at{work.col, work.c_row + row, work.c_matrix, row < work.m};
  if (to.values.c_is_bf16) {
    store_rows<bf16, n>(map, to.values, work.n, own, sums, at);
  } else {
    store_rows<float, n>(map, to.values, work.n, own, sums, at);
  }
}

// A warpgroup: its 64 rows of every tile.
template <WideTile tile, Transposed a_transposed, Transposed b_transposed, class Schedule>
__device__ void consume(Ring<tile>& ring, const OutputMaps& maps, const Output& out,
                        const Schedule& schedule) {
  using Shared = Ring<tile>;
  constexpr int steps = depth / 16;
  const int group = static_cast<int>(threadIdx.x) / warpgroup - 1;
  const int warp = static_cast<int>(threadIdx.x) % warpgroup / 32;
  const Place place = own_place();
  const int tiles = static_cast<int>(schedule.blocks({rows * place.blocks, Shared::n}));
  RingPosition<Shared::stages> at;
  BoxRing<Shared::boxes> own{ring.c[4 * group + warp]};
  float sums[Shared::n / 2];

  // Beyond the end of k the copy engine put zeros, but beyond a group's rows lie the next group's, which
  // must not be added: such steps read zeros from elsewhere. Groups are multiples of 32, so of a step.
  const std::uint64_t nothing = wgmma_descriptor(shared_address(ring.zeros), 0);
  // To every block that writes to the stage.
  const auto release = [&](int stage) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (place.blocks == 1) {
      if (lane == 0) mbarrier_arrive(&ring.empty[stage]);
    } else if (lane < place.blocks) {
      mbarrier_hand_back_in_block(&ring.empty[stage], static_cast<unsigned>(lane));
    }
  };

  for (int number = place.first_tile(); number < tiles; number += place.step()) {
    Work work;
    if (!find_work(schedule, place, number, Shared::n, work)) continue;
    int last = -1;
    for (int k = 0; k < work.k; k += depth) {
      // All descriptors before the first product: any branch between products makes the compiler
      // fence each.
      std::uint64_t a[steps], b[steps];
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const bool inside = !Schedule::ends_in_data || k + 16 * step < work.k;
        a[step] =
            inside ? operand_descriptor<a_transposed>(ring.a[at.stage] + group * 64 * depth, step)
                   : nothing;
        b[step] = inside ? operand_descriptor<b_transposed>(ring.b[at.stage], step) : nothing;
      }
      mbarrier_wait(&ring.full[at.stage], at.parity);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        wgmma_m64k16<a_transposed, b_transposed>(sums, a[step], b[step], k + step > 0);
      }
      wgmma_commit();
      // This stage's products stay in flight; those of the stage before it are done.
      if (last >= 0) {
        wgmma_wait<1>();
        release(last);
      }
      last = at.stage;
      at.advance();
    }
    wgmma_wait<0>();
    release(last);
    write_rows<Shared::n>(maps, out, work, own, sums, work.row + 64 * group + 16 * warp);
  }
  wait_for_boxes();
}

__device__ void meet_cluster() {
  cluster_barrier_arrive();
  cluster_barrier_wait();
}

#endif

template <WideTile tile, Transposed a_transposed, Transposed b_transposed, class Schedule>
__global__ void __launch_bounds__(threads, 1)
    gemm_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
               const __grid_constant__ TensorMap c, const __grid_constant__ TensorMap partial,
               Output out, Schedule schedule) {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shared = Ring<tile>;
  auto& ring = shared_storage<Shared>();
  const bool shares = cluster_blocks() > 1;
  if (threadIdx.x == 0) {
    tma_prefetch(a);
    tma_prefetch(b);
    tma_prefetch(c);
    tma_prefetch(partial);
    for (int stage = 0; stage < Shared::stages; ++stage) {
      mbarrier_init(&ring.full[stage], 1);
      mbarrier_init(&ring.empty[stage], cluster_blocks() * consumer_warps);
    }
    mbarrier_fence_init();
  }
  if constexpr (Schedule::ends_in_data) {
    if (threadIdx.x < warpgroup) store_shared(ring.zeros + threadIdx.x, uint4{0, 0, 0, 0});
    fence_proxy_async();
  }
  __syncthreads();
  if (shares) meet_cluster();
  if (threadIdx.x < warpgroup) {
    shrink_registers<40>();
    if (threadIdx.x < 32) produce<tile, a_transposed, b_transposed>(ring, a, b, c, out, schedule);
  } else {
    grow_registers<232>();
    consume<tile, a_transposed, b_transposed>(ring, {c, partial}, out, schedule);
  }
  // Neither ends while the other may bring operands to it or arrive at its mbarriers.
  if (shares) meet_cluster();
#endif
}

// An operand as the copy engine sees it: [mn, k], or [k, mn] when transposed; one, or a stack.
TensorMap tensor_map(const ConstTensor& x, Transposed transposed, int side) {
  return make_tensor_map({.data = x.raw(),
                          .cols = x.dim(-1),
                          .rows = x.dim(-2),
                          .matrices = x.rank() == 3 ? x.dim(0) : 1,
                          .box_cols = transposed == Transposed::yes ? box : depth,
                          .box_rows = transposed == Transposed::yes ? depth : side});
}

// The copy engine writes rows that begin on 16 bytes, and rounds once: what it adds to bf16 would be
// rounded twice.
bool takes_store(const Tensor& c, bool add) {
  return c.dim(-1) * static_cast<std::int64_t>(size_of(c.dtype())) % 16 == 0 &&
         is_aligned(c.raw(), 16) && !(add && c.dtype() == DType::bf16);
}

// A tensor that sums go to.
struct Target {
  Tensor c;
  Epilogue<bf16> values;

  Destination destination(Writing writing) const {
    return {values, c && takes_store(c, values.add) ? writing : Writing::direct};
  }
};

template <class Schedule>
struct Launch {
  Stream& stream;
  WideKernel kernel;
  ConstTensor a, b;
  Schedule schedule;
  Target c, partial = {};

  template <WideTile tile, Transposed a_transposed, Transposed b_transposed>
  void with() const {
    constexpr int n = columns_of(tile);
    const auto blocks = static_cast<unsigned>(kernel.blocks);
    const unsigned clusters =
        static_cast<unsigned>(gpu_properties(stream).multiprocessors) / blocks;
    const TensorMap a_map = tensor_map(a, a_transposed, rows);
    const Output out{c.destination(kernel.writing), partial.destination(kernel.writing)};
    const auto map_of = [&](const Target& to, const Destination& how) {
      return how.writing != Writing::direct ? store_map(to.c) : a_map;  // any map: it is not used
    };
    launch(stream,
           {.kernel = "gemm_wgmma",
            .grid = {blocks * std::min(clusters, schedule.blocks({rows * kernel.blocks, n}))},
            .block = {threads},
            .shared_bytes = sizeof(Ring<tile>),
            .cluster = {blocks}},
           gemm_wgmma<tile, a_transposed, b_transposed, Schedule>, a_map,
           tensor_map(b, b_transposed, n / kernel.blocks), map_of(c, out.c),
           map_of(partial, out.partial), out, schedule);
  }

  template <Transposed a_transposed, Transposed b_transposed>
  void in() const {
    if (kernel.tile == WideTile::n_256) {
      with<WideTile::n_256, a_transposed, b_transposed>();
    } else {
      with<WideTile::n_128, a_transposed, b_transposed>();
    }
  }
};

}  // namespace

bool takes_sm90(const ConstTensor& a, const ConstTensor& b) {
  const auto takes = [](const ConstTensor& x) {
    return x.numel() > 0 && x.dim(-1) % 8 == 0 && is_aligned(x.raw(), 16);
  };
  return takes(a) && takes(b);
}

// `Transposed` is about the contiguous dimension, `Transpose` about the formula: b is stored [n, k]
// when the formula transposes it, and then k is contiguous.
void run_sm90(Stream& stream, const Gemm& op, WideKernel kernel, Cut cut) {
  if (op.c.numel() == 0) return;
  const int unit = rows * kernel.blocks;
  const std::int64_t m = op.c.dim(0), n = op.c.dim(1);
  const std::int64_t whole = cut.slices > 1 ? std::min(m, cut.whole / unit * unit) : m;
  CutSchedule schedule{schedule_of(op, 1), schedule_of(op, cut.slices)};
  schedule.whole.m = static_cast<int>(whole);
  schedule.cut.m = static_cast<int>(m - whole);

  Target partial;
  if (whole < m) {
    const int slices = schedule.cut.slices;
    const auto bytes = static_cast<std::size_t>(slices * (m - whole) * n) * sizeof(float);
    partial.c = Tensor(stream.workspace(bytes), DType::f32, {slices, m - whole, n}, op.c.device());
    partial.values = epilogue<bf16>(partial.c, {}, Accumulate::overwrite);
  }
  const Target c{op.c, epilogue<bf16>(op.c, op.bias, op.accumulate)};
  const Launch<CutSchedule> launch{stream, kernel, op.a, op.b, schedule, c, partial};
  const bool a_is_mn = op.transpose_a == Transpose::yes;
  const bool b_is_k = op.transpose_b == Transpose::yes;
  if (a_is_mn && b_is_k) {
    launch.in<Transposed::yes, Transposed::no>();
  } else if (a_is_mn) {
    launch.in<Transposed::yes, Transposed::yes>();
  } else if (b_is_k) {
    launch.in<Transposed::no, Transposed::no>();
  } else {
    launch.in<Transposed::no, Transposed::yes>();
  }
  if (whole < m) {
    add_slices(stream, partial.c.data<float>(), schedule.cut,
               epilogue<bf16>(op.c.slice(whole, m - whole), op.bias, op.accumulate));
  }
}

void run_sm90(Stream& stream, const GroupedGemm& op, WideKernel kernel) {
  if (op.c.numel() == 0) return;
  const Target c{op.c, epilogue<bf16>(op.c, {}, op.accumulate)};
  const Launch<GroupedRowsSchedule> launch{stream, kernel, op.a, op.b, schedule_of(op), c};
  if (op.transpose_b == Transpose::yes) return launch.in<Transposed::no, Transposed::no>();
  launch.in<Transposed::no, Transposed::yes>();
}

void run_sm90(Stream& stream, const GroupedGemmWeightGradient& op, WideKernel kernel) {
  if (op.d_b.numel() == 0) return;
  const Target c{op.d_b, epilogue<bf16>(op.d_b, {}, Accumulate::add)};
  const Launch<GroupedDepthSchedule> launch{stream, kernel, op.a, op.b, schedule_of(op), c};
  launch.in<Transposed::yes, Transposed::yes>();
}

}  // namespace orchard::GPU_NAMESPACE
