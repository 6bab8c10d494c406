// The GPU's matrix products by dtype. gemm_gpu.cu picks one per call and registers them.
//
// Which tile and how many slices of k is a function of the shape and the number of SMs alone: what is
// added in which order depends on nothing else.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gemm/gemm.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// Split-K. Weight gradients have few tiles and a long k: [512, 512] over 32768 rows is 16 tiles of 128,
// on 132 SMs. Blocks then sum a slice of k each, and a second launch adds the slices in their order
// (split_k.h). A kernel holds `resident` blocks at once on the whole GPU; `overhead` is the k in whose
// time it writes a tile of sums, and in about whose time the second launch starts, adds and ends.
struct Blocks {
  std::int64_t resident;
  std::int64_t overhead;
};

// On the tensor cores of an H100 a k of a 128 x 128 tile takes 6 ns (5.7 TFLOP/s an SM), the launch 3 µs,
// and the sums, 128 KB written and read, 3 µs when all SMs do it. On the FFMA units it takes 60 ns, and
// on the narrow tiles, which wait for memory, 20 ns; but their sums are an eighth.
constexpr std::int64_t tensor_core_overhead = 512, ffma_overhead = 64;

// The rounds of blocks that a product of `tiles` tiles takes, in k.
constexpr std::int64_t split_time(std::int64_t tiles, std::int64_t k, Blocks blocks, int slices) {
  const std::int64_t rounds = (tiles * slices + blocks.resident - 1) / blocks.resident;
  return rounds * ((k + slices - 1) / slices + blocks.overhead) +
         (slices > 1 ? blocks.overhead : 0);
}

// The number of slices that is done soonest. At most two rounds of blocks, which bounds the workspace to
// the sums of two rounds: 35 MB on an H100. More tiles than blocks stay whole: slices of those that are
// left over for the last round gained nothing (docs/notes/gemm.md).
constexpr int choose_slices(std::int64_t tiles, std::int64_t k, Blocks blocks) {
  const std::int64_t most =
      tiles == 0 ? 1 : std::min(2 * blocks.resident / tiles, k / blocks.overhead);
  int best = 1;
  for (int slices = 2; slices <= most; ++slices) {
    if (split_time(tiles, k, blocks, slices) < split_time(tiles, k, blocks, best)) best = slices;
  }
  return best;
}

// The side of a square tile of c.
enum class Tile : std::uint8_t { side_64, side_128 };

// Blocks that share an SM: shared memory and registers of gemm_sm80.cu.
constexpr int blocks_per_sm(Tile tile) {
  return tile == Tile::side_64 ? 4 : 2;
}

// Products too small to give each of 108 SMs (the smallest chip of sm_80 on, A100) a block of a tile of
// 128 are cut in tiles of 64: four times the blocks for twice the reads of shared memory a FLOP.
constexpr Tile choose_tile(std::int64_t blocks_of_128) {
  return blocks_of_128 < 108 ? Tile::side_64 : Tile::side_128;
}

// bf16 operands, on the tensor cores (gemm_sm80.cu).
void run_bf16(Stream&, const Gemm&, Tile, int slices = 1);
void run_bf16(Stream&, const GroupedGemm&, Tile);
void run_bf16(Stream&, const GroupedGemmWeightGradient&, Tile);

// How many columns the tiles of sm_90a have; all have 128 rows.
enum class WideTile : std::uint8_t { n_128, n_256 };

// Persistent blocks, one an SM. Tiles of 128 on less than a third of the SMs lose against tiles of 64 on
// all of them.
constexpr bool fills_sm90(std::int64_t blocks_of_128, int multiprocessors) {
  return 3 * blocks_of_128 >= multiprocessors;
}

// The tile whose blocks are done sooner: rounds over the SMs times columns. 128 columns are a tenth
// dearer each, for the rows that are read again. k is 0 where it cannot be cut.
constexpr WideTile choose_wide_tile(std::int64_t tile_rows, std::int64_t n, std::int64_t k,
                                    int multiprocessors) {
  const auto time = [&](std::int64_t columns) {
    const std::int64_t tiles = tile_rows * ((n + columns - 1) / columns);
    const Blocks blocks{multiprocessors, tensor_core_overhead};
    return split_time(tiles, k, blocks, choose_slices(tiles, k, blocks));
  };
  return 2560 * time(256) <= 1408 * time(128) ? WideTile::n_256 : WideTile::n_128;
}

// bf16 operands, on the tensor cores of sm_90a (gemm_sm90.cu). Needs k > 0 and rows that begin on 16
// bytes, and gathers a for transpose_b alone, which is what models ask for: takes_sm90.
bool takes_sm90(const Gemm&);
bool takes_sm90(const GroupedGemm&);
bool takes_sm90(const GroupedGemmWeightGradient&);
void run_sm90(Stream&, const Gemm&, WideTile, int slices = 1);
void run_sm90(Stream&, const GroupedGemm&, WideTile);
void run_sm90(Stream&, const GroupedGemmWeightGradient&, WideTile);

// Tiles of the f32 kernel. A router has a column an expert: [32768, 8] = x [32768, 512] · w^T reads 67 MB
// for 0.27 GFLOP, 4 FLOPs a byte where an H100 has 20 (67 TFLOP/s, 3.35 TB/s). Tiles of 128 columns would
// compute sixteen times as much and be bound by that; tiles of 16 are bound by memory.
enum class F32Tile : std::uint8_t {
  square,  // 128 x 128
  tall,    // 128 x 16: n <= 16
  flat,    // 16 x 128: m <= 16
};

constexpr F32Tile choose_f32_tile(std::int64_t m, std::int64_t n) {
  return n <= 16 ? F32Tile::tall : m <= 16 ? F32Tile::flat : F32Tile::square;
}

// By the vendor's library; false, having done nothing, where it does not take the product. Throws Error
// where the library is missing (kernels/cuda/cublaslt.h).
bool run_library(Stream&, const Gemm&);

// f32 operands, on the FFMA units (gemm_f32.cu): the correctness mode, without tf32's rounding. Cuts
// long sums into slices itself.
void run_f32(Stream&, const Gemm&);
void run_f32(Stream&, const GroupedGemm&);
void run_f32(Stream&, const GroupedGemmWeightGradient&);

}  // namespace orchard::GPU_NAMESPACE
