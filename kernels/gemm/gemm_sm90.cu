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
// Of tokens that an index names (GroupedGemm::source) the copy engine's boxes, of neighbouring rows, are
// no use: all four warps of the producer copy them, 16 bytes a thread, to where the engine would have put
// them (gather_sm90.h), and the consumers see no difference. These are instances of their own: the others
// keep a producer of one warp and few registers.
#include <algorithm>
#include <type_traits>

#include "kernels/device/stream.h"
#include "kernels/gemm/epilogue.h"
#include "kernels/gemm/gather_sm90.h"
#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gemm/split_k.h"
#include "kernels/gemm/tile_store.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/ptx/elect.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/tma.h"
#include "kernels/ptx/wgmma.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int rows = 128;  // of a tile: 64 for each consumer
constexpr int depth = 64;  // of a stage: 128 bytes, the width of the swizzle
constexpr int box = 64;    // sides of the boxes of operands that are not k-major
constexpr int warpgroup = 128;
constexpr int threads = 3 * warpgroup;  // a producer and two consumers
constexpr int consumer_warps = 8;

// Grouped weight gradients, short of k and bound by HBM, are 5 to 8 % faster with c at hand; dense ones
// gain nothing (docs/notes/gemm.md).
template <class Schedule>
constexpr bool fetches_c_ahead = std::is_base_of_v<GroupedDepthSchedule, Schedule>;

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

// How sums get to c, from shared memory: by the copy engine; or by the threads, where it does not take c or
// an epilogue reads or writes more than c.
enum class Writing : std::uint8_t { stored, finished };

// Where sums go, and how.
struct Output {
  Epilogue<bf16> values;
  Writing writing;
};

constexpr int producer_warps = warpgroup / 32;

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

template <Transposed transposed>
__device__ std::uint64_t operand_descriptor(const bf16* operand, int step) {
  constexpr unsigned step_bytes = transposed == Transposed::yes ? 16 * 128 : 16 * sizeof(bf16);
  constexpr unsigned box_bytes = box * depth * sizeof(bf16);
  return wgmma_descriptor(shared_address(operand) + step_bytes * static_cast<unsigned>(step),
                          box_bytes);
}

// One warp; one of its lanes issues.
template <WideTile tile, Transposed a_transposed, Transposed b_transposed, class Schedule>
__device__ void produce(Ring<tile>& ring, const TensorMap& a, const TensorMap& b,
                        const TensorMap& c, const Output& out, const Schedule& schedule) {
  using Shared = Ring<tile>;
  constexpr unsigned stage_bytes = sizeof ring.a[0] + sizeof ring.b[0];
  constexpr bool fetches_c = fetches_c_ahead<Schedule>;
  const bool leader = elect_one();
  const int tiles = static_cast<int>(schedule.blocks({rows, Shared::n}));
  RingPosition<Shared::stages> at;
  for (int number = static_cast<int>(blockIdx.x); number < tiles;
       number += static_cast<int>(gridDim.x)) {
    Work work;
    if (!schedule.find(number, {rows, Shared::n}, work) || !leader) continue;
    [[maybe_unused]] BoxesAhead<rows, Shared::n> ahead;
    for (int k = 0; k < work.k; k += depth, at.advance()) {
      std::uint64_t* const full = &ring.full[at.stage];
      mbarrier_wait(&ring.empty[at.stage], at.parity ^ 1);
      mbarrier_arrive_expect(full, stage_bytes);
      load_operand<a_transposed, rows>(ring.a[at.stage], a, work.first_row + work.row,
                                       work.first_k + k, work.a_matrix, full);
      load_operand<b_transposed, Shared::n>(ring.b[at.stage], b, work.col, work.first_k + k,
                                            work.b_matrix, full);
      if constexpr (fetches_c) {
        if (out.writing == Writing::stored) {
          ahead.fetch(c, work, k / depth, tiles_in(work.k, depth));
        }
      }
    }
  }
}

// All four warps, where an index names the rows of an operand. A stage is handed over once the copies of
// the next `lag` stages have been asked for, so that its own have had time to come.
template <WideTile tile, Transposed a_transposed, Transposed b_transposed, class Schedule>
__device__ void produce_gathered(Ring<tile>& ring, const TensorMap& a, const TensorMap& b,
                                 const TensorMap& c, const Output& out, const Schedule& schedule) {
  using Shared = Ring<tile>;
  constexpr bool of_a = Schedule::gathers == Gathers::a;
  constexpr unsigned engine_bytes = of_a ? sizeof ring.b[0] : sizeof ring.a[0];
  // The consumers give a stage back while they multiply the next one: two are theirs.
  constexpr int lag = Shared::stages - 2;
  const bool elected = elect_one();
  const bool leader = elected && threadIdx.x < 32;
  const int tiles = static_cast<int>(schedule.blocks({rows, Shared::n}));
  RingPosition<Shared::stages> at, oldest;
  int under_way = 0;  // stages that are asked for and not handed over
  const auto hand_over = [&] {
    fence_proxy_async();  // what this thread has copied is for wgmma to read
    __syncwarp();
    if (elected) mbarrier_arrive(&ring.full[oldest.stage]);
    oldest.advance();
  };

  for (int number = static_cast<int>(blockIdx.x); number < tiles;
       number += static_cast<int>(gridDim.x)) {
    Work work;
    if (!schedule.find(number, {rows, Shared::n}, work)) continue;
    NamedRows<of_a ? rows : depth, chunks_in_line, warpgroup> named;
    const auto look_up_step = [&](int k) {
      named.look_up(schedule.source, {work.first_k + k, work.first_k + work.k});
    };
    if constexpr (of_a) {
      named.look_up(schedule.source, {work.first_row + work.row, work.first_row + work.m});
    } else {
      look_up_step(0);
    }
    [[maybe_unused]] BoxesAhead<rows, Shared::n> ahead;
    for (int k = 0; k < work.k; k += depth, at.advance()) {
      std::uint64_t* const full = &ring.full[at.stage];
      mbarrier_wait(&ring.empty[at.stage], at.parity ^ 1);
      if (leader) {
        mbarrier_arrive_expect(full, engine_bytes);
        if constexpr (of_a) {
          load_operand<b_transposed, Shared::n>(ring.b[at.stage], b, work.col, work.first_k + k,
                                                work.b_matrix, full);
        } else {
          load_operand<a_transposed, rows>(ring.a[at.stage], a, work.row, work.first_k + k,
                                           work.a_matrix, full);
        }
        if constexpr (fetches_c_ahead<Schedule>) {
          if (out.writing == Writing::stored) {
            ahead.fetch(c, work, k / depth, tiles_in(work.k, depth));
          }
        }
      }
      if constexpr (of_a) {
        copy_named_rows<1>(ring.a[at.stage], schedule, named, {k, work.k});
      } else {
        copy_named_rows<Shared::n / box>(ring.b[at.stage], schedule, named, {work.col, work.n});
        look_up_step(k + depth);
      }
      cp_async_commit();
      if (++under_way > lag) {
        cp_async_wait<lag>();
        hand_over();
        --under_way;
      }
    }
    // The consumers have these to do while the next tile is looked up.
    cp_async_wait<0>();
    for (; under_way > 0; --under_way) hand_over();
  }
}

// A warp's 16 rows of a tile, from `row` on.
template <int n, int boxes>
__device__ void write_rows(const TensorMap& c, const Output& out, const Work& work,
                           BoxRing<boxes>& own, const float (&sums)[n / 2], int row) {
  if (out.writing == Writing::finished) {
    static_assert(sizeof(WarpStage) <= sizeof own.box);
    WarpStage& stage = reinterpret_cast<WarpStage&>(own.box);
    constexpr int turns = n / WarpStage::cols;
    StageQuads ahead = read_others(out.values, work, row, work.col);
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      const int col = work.col + turn * WarpStage::cols;
      const StageQuads others = ahead;
      if (turn + 1 < turns) ahead = read_others(out.values, work, row, col + WarpStage::cols);
      take_turn<turns>(turn, [&](int i) { fill_stage(stage, sums + i * WarpStage::cols / 2); });
      finish_stage(out.values, work, stage, others, row, col);
    }
    return;
  }
  const StoreRows at{work.col, work.first_row + row, work.c_matrix, row < work.m};
  if (out.values.c_is_bf16) {
    store_rows<bf16, n>(c, out.values, work.n, own, sums, at);
  } else {
    store_rows<float, n>(c, out.values, work.n, own, sums, at);
  }
}

// A warpgroup: its 64 rows of every tile.
template <WideTile tile, Transposed a_transposed, Transposed b_transposed, class Schedule>
__device__ void consume(Ring<tile>& ring, const TensorMap& c, const Output& out,
                        const Schedule& schedule) {
  using Shared = Ring<tile>;
  constexpr int steps = depth / 16;
  const int group = static_cast<int>(threadIdx.x) / warpgroup - 1;
  const int warp = static_cast<int>(threadIdx.x) % warpgroup / 32;
  const int tiles = static_cast<int>(schedule.blocks({rows, Shared::n}));
  RingPosition<Shared::stages> at;
  BoxRing<Shared::boxes> own{ring.c[4 * group + warp]};
  float sums[Shared::n / 2];

  // Beyond the end of k the copy engine put zeros, but beyond a group's rows lie the next group's, which
  // must not be added: such steps read zeros from elsewhere. Groups are multiples of 32, so of a step.
  const std::uint64_t nothing = wgmma_descriptor(shared_address(ring.zeros), 0);
  const auto release = [&](int stage) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&ring.empty[stage]);
  };

  for (int number = static_cast<int>(blockIdx.x); number < tiles;
       number += static_cast<int>(gridDim.x)) {
    Work work;
    if (!schedule.find(number, {rows, Shared::n}, work)) continue;
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
    write_rows<Shared::n>(c, out, work, own, sums, work.row + 64 * group + 16 * warp);
  }
  wait_for_boxes();
}

template <WideTile tile, Transposed a_transposed, Transposed b_transposed, class Schedule>
__global__ void __launch_bounds__(threads, 1)
    gemm_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
               const __grid_constant__ TensorMap c, Output out, Schedule schedule) {
  using Shared = Ring<tile>;
  auto& ring = shared_storage<Shared>();
  if (threadIdx.x == 0) {
    tma_prefetch(a);
    tma_prefetch(b);
    tma_prefetch(c);
    // The copy engine's bytes and, of named rows, the warps that copy them.
    constexpr unsigned fills = is_gathering<Schedule> ? 1 + producer_warps : 1;
    for (int stage = 0; stage < Shared::stages; ++stage) {
      mbarrier_init(&ring.full[stage], fills);
      mbarrier_init(&ring.empty[stage], consumer_warps);
    }
    mbarrier_fence_init();
  }
  if constexpr (Schedule::ends_in_data) {
    if (threadIdx.x < warpgroup) store_shared(ring.zeros + threadIdx.x, uint4{0, 0, 0, 0});
    fence_proxy_async();
  }
  __syncthreads();
  if (threadIdx.x < warpgroup) {
    shrink_registers<40>();
    if constexpr (is_gathering<Schedule>) {
      produce_gathered<tile, a_transposed, b_transposed>(ring, a, b, c, out, schedule);
    } else {
      if (threadIdx.x < 32) produce<tile, a_transposed, b_transposed>(ring, a, b, c, out, schedule);
    }
  } else {
    grow_registers<232>();
    consume<tile, a_transposed, b_transposed>(ring, c, out, schedule);
  }
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

Writing writing_of(const Tensor& c, const Epilogue<bf16>& values) {
  return values.kind == EpilogueKind::none && takes_store(c, values.add) ? Writing::stored
                                                                         : Writing::finished;
}

// Rows begin on 16 bytes, and there are some.
bool in_chunks(const ConstTensor& x) {
  return x.numel() > 0 && x.dim(-1) % 8 == 0 && is_aligned(x.raw(), 16);
}

template <class Schedule>
struct Launch {
  Stream& stream;
  WideTile tile;
  ConstTensor a, b;
  Tensor c;
  Epilogue<bf16> values;
  Schedule schedule;

  template <WideTile wide, Transposed a_transposed, Transposed b_transposed>
  void with() const {
    constexpr int n = Ring<wide>::n;
    const auto multiprocessors = static_cast<unsigned>(gpu_properties(stream).multiprocessors);
    const Writing writing = writing_of(c, values);
    const TensorMap a_map = tensor_map(a, a_transposed, rows);
    launch(stream,
           {.kernel = "gemm_wgmma",
            .grid = {std::min(multiprocessors, schedule.blocks({rows, n}))},
            .block = {threads},
            .shared_bytes = sizeof(Ring<wide>)},
           gemm_wgmma<wide, a_transposed, b_transposed, Schedule>, a_map,
           tensor_map(b, b_transposed, n),
           writing == Writing::stored ? store_map(c) : a_map,  // any map: it is not used
           Output{values, writing}, schedule);
  }

  template <Transposed a_transposed, Transposed b_transposed>
  void in() const {
    if (tile == WideTile::n_256) {
      with<WideTile::n_256, a_transposed, b_transposed>();
    } else {
      with<WideTile::n_128, a_transposed, b_transposed>();
    }
  }
};

}  // namespace

bool takes_sm90(const Gemm& op) {
  return in_chunks(op.a) && in_chunks(op.b);
}

bool takes_sm90(const GroupedGemm& op) {
  return in_chunks(op.a) && in_chunks(op.b) && (!op.source || op.transpose_b == Transpose::yes);
}

bool takes_sm90(const GroupedGemmWeightGradient& op) {
  return in_chunks(op.a) && in_chunks(op.b);
}

// `Transposed` is about the contiguous dimension, `Transpose` about the formula: b is stored [n, k]
// when the formula transposes it, and then k is contiguous.
void run_sm90(Stream& stream, const Gemm& op, WideTile tile, int slices) {
  if (op.c.numel() == 0) return;
  run_sliced<bf16>(
      stream, op, slices,
      [&](const Tensor& c, const Epilogue<bf16>& values, const DenseSchedule& schedule) {
        const Launch<DenseSchedule> launch{stream, tile, op.a, op.b, c, values, schedule};
        const bool a_is_mn = op.transpose_a == Transpose::yes;
        const bool b_is_k = op.transpose_b == Transpose::yes;
        if (a_is_mn && b_is_k) return launch.in<Transposed::yes, Transposed::no>();
        if (a_is_mn) return launch.in<Transposed::yes, Transposed::yes>();
        if (b_is_k) return launch.in<Transposed::no, Transposed::no>();
        launch.in<Transposed::no, Transposed::yes>();
      });
}

void run_sm90(Stream& stream, const GroupedGemm& op, WideTile tile) {
  if (op.c.numel() == 0) return;
  const auto values = epilogue<bf16>(op.c, {}, op.accumulate, op.epilogue);
  const auto with = [&](const auto& schedule) {
    return Launch<std::decay_t<decltype(schedule)>>{stream, tile,   op.a,    op.b,
                                                    op.c,   values, schedule};
  };
  if (op.source) {
    return with(gathering(schedule_of(op), op.a, op.source)).in<Transposed::no, Transposed::no>();
  }
  const auto launch = with(schedule_of(op));
  if (op.transpose_b == Transpose::yes) return launch.in<Transposed::no, Transposed::no>();
  launch.in<Transposed::no, Transposed::yes>();
}

void run_sm90(Stream& stream, const GroupedGemmWeightGradient& op, WideTile tile) {
  if (op.d_b.numel() == 0) return;
  const auto values = epilogue<bf16>(op.d_b, {}, Accumulate::add);
  const auto with = [&](const auto& schedule) {
    return Launch<std::decay_t<decltype(schedule)>>{stream, tile,   op.a,    op.b,
                                                    op.d_b, values, schedule};
  };
  if (op.source) {
    return with(gathering(schedule_of(op), op.b, op.source)).in<Transposed::yes, Transposed::yes>();
  }
  with(schedule_of(op)).in<Transposed::yes, Transposed::yes>();
}

}  // namespace orchard::GPU_NAMESPACE
