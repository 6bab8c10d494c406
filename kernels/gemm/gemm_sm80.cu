// Matrix products of bf16 on GPUs from sm_80 on: dense, grouped by rows, grouped by depth.
//
// FLOPs 2·m·n·k, on the tensor cores. Bytes: each block reads (tile.m + tile.n)·k elements, from L2
// but for the first time: 128 FLOPs a byte for tiles of 128. Bound: tensor cores.
//
// Four warps of 64 x 64 each read (64 + 64)·16 elements of shared memory for 32 mma: 64 bytes a
// clock and SM on an A100, half of what shared memory delivers; warps of 64 x 32 would read 96.
// Four stages of 32 in k keep three steps in flight, and at 64 KB let two blocks share an SM, one
// of which computes while the other waits at its barrier or writes its tile.
#include "kernels/device/stream.h"
#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/mma_tile.h"
#include "kernels/gemm/split_k.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr TileConfig config_of(Tile tile) {
  switch (tile) {
    case Tile::side_128:
      // 128 sums a thread: with two blocks an SM there are 255 registers for each.
      return {.m = 128,
              .n = 128,
              .k = 32,
              .stages = 4,
              .warps_m = 2,
              .warps_n = 2,
              .blocks_per_sm = blocks_per_sm(tile)};
    case Tile::side_64:
      // 32 sums a thread and 32 KB of stages: small products want many blocks, not large ones.
      return {.m = 64,
              .n = 64,
              .k = 32,
              .stages = 4,
              .warps_m = 2,
              .warps_n = 2,
              .blocks_per_sm = blocks_per_sm(tile)};
  }
  return {};
}

// (nvcc 13 compiles kernels with a structure for a template argument, but not their launch.)
template <Tile side, Major a_major, Major b_major, Loads loads, class Schedule>
__global__ void __launch_bounds__(config_of(side).threads(), config_of(side).blocks_per_sm)
    gemm_bf16(MatrixOperand a, MatrixOperand b, Epilogue<bf16> out, Schedule schedule) {
  constexpr TileConfig tile = config_of(side);
  Work work;
  if (!schedule.find(static_cast<int>(blockIdx.x), tile.sides(), work)) return;
  a.data += work.a;
  b.data += work.b;
  auto& shared = shared_storage<GemmStages<tile>>();
  Accumulators<tile> sums;
  multiply_tile<tile, a_major, b_major, loads, Schedule::gathers>(shared, a, b, work, sums);
  write_tile<tile>(shared, sums, out, work);
}

// A product as the kernel sees it.
template <class Schedule>
struct Launch {
  Stream& stream;
  MatrixOperand a, b;
  Epilogue<bf16> out;
  Schedule schedule;
  Loads loads;

  template <Tile side, Major a_major, Major b_major, Loads how>
  void with() const {
    constexpr TileConfig tile = config_of(side);
    launch(stream,
           {.kernel = "gemm_bf16",
            .grid = {schedule.blocks(tile.sides())},
            .block = {static_cast<unsigned>(tile.threads())},
            .shared_bytes = sizeof(GemmStages<tile>)},
           gemm_bf16<side, a_major, b_major, how, Schedule>, a, b, out, schedule);
  }

  // Unaligned operands, which no model has, run in tiles of 64 alone.
  template <Major a_major, Major b_major>
  void in(Tile side) const {
    if (loads == Loads::elements) {
      with<Tile::side_64, a_major, b_major, Loads::elements>();
    } else if (side == Tile::side_64) {
      with<Tile::side_64, a_major, b_major, Loads::vectors>();
    } else {
      with<Tile::side_128, a_major, b_major, Loads::vectors>();
    }
  }
};

// Rows of either operand begin on 16 bytes.
Loads loads_of(const ConstTensor& a, const ConstTensor& b) {
  const auto in_vectors = [](const ConstTensor& x) {
    return x.dim(-1) % chunk == 0 && is_aligned(x.raw(), 16);
  };
  return in_vectors(a) && in_vectors(b) ? Loads::vectors : Loads::elements;
}

MatrixOperand operand(const ConstTensor& x, const ConstTensor& source = {}) {
  return {x.data<bf16>(), x.dim(-1), source.data<std::int32_t>()};
}

}  // namespace

void run_bf16(Stream& stream, const Gemm& op, Tile side, int slices) {
  if (op.c.numel() == 0) return;
  run_sliced<bf16>(stream, op, slices,
                   [&](const Tensor&, const Epilogue<bf16>& out, const DenseSchedule& schedule) {
                     const Launch<DenseSchedule> launch{
                         stream, operand(op.a), operand(op.b), out, schedule, loads_of(op.a, op.b)};
                     const bool a_is_mn = op.transpose_a == Transpose::yes;
                     const bool b_is_k = op.transpose_b == Transpose::yes;
                     if (a_is_mn && b_is_k) return launch.in<Major::mn, Major::k>(side);
                     if (a_is_mn) return launch.in<Major::mn, Major::mn>(side);
                     if (b_is_k) return launch.in<Major::k, Major::k>(side);
                     launch.in<Major::k, Major::mn>(side);
                   });
}

void run_bf16(Stream& stream, const GroupedGemm& op, Tile side) {
  if (op.c.numel() == 0) return;
  const auto out = epilogue<bf16>(op.c, {}, op.accumulate, op.epilogue);
  const Launch<GroupedRowsSchedule> launch{stream, operand(op.a, op.source), operand(op.b),
                                           out,    schedule_of(op),          loads_of(op.a, op.b)};
  if (op.transpose_b == Transpose::yes) return launch.in<Major::k, Major::k>(side);
  launch.in<Major::k, Major::mn>(side);
}

void run_bf16(Stream& stream, const GroupedGemmWeightGradient& op, Tile side) {
  if (op.d_b.numel() == 0) return;
  const Launch<GroupedDepthSchedule> launch{stream,
                                            operand(op.a),
                                            operand(op.b, op.source),
                                            epilogue<bf16>(op.d_b, {}, Accumulate::add),
                                            schedule_of(op),
                                            loads_of(op.a, op.b)};
  launch.in<Major::mn, Major::mn>(side);
}

}  // namespace orchard::GPU_NAMESPACE
