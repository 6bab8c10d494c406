// The GPU's matrix products by dtype. gemm_gpu.cu picks one per call and registers them.
#pragma once

#include "kernels/gemm/gemm.h"
#include "kernels/gpu/gpu.h"

namespace orchard::GPU_NAMESPACE {

// The side of a square tile of c.
enum class Tile : std::uint8_t { side_64, side_128 };

// Products too small to give each of 108 SMs (the smallest chip of sm_80 on, A100) a tile of 128 are
// cut in tiles of 64: four times the blocks for twice the reads of shared memory a FLOP. `tiles_128`
// is the number of tiles of 128.
constexpr Tile choose_tile(std::int64_t tiles_128) {
  return tiles_128 < 108 ? Tile::side_64 : Tile::side_128;
}
Tile choose_tile(const Gemm&);
Tile choose_tile(const GroupedGemm&);
Tile choose_tile(const GroupedGemmWeightGradient&);

// bf16 operands, on the tensor cores (gemm_sm80.cu).
void run_bf16(Stream&, const Gemm&, Tile);
void run_bf16(Stream&, const GroupedGemm&, Tile);
void run_bf16(Stream&, const GroupedGemmWeightGradient&, Tile);

// How many columns the tiles of sm_90a have; all have 128 rows.
enum class WideTile : std::uint8_t { n_128, n_256 };

// Persistent blocks of 128 rows, one an SM. Below a third of the SMs, tiles of 64 on all of them win.
constexpr bool fills_sm90(std::int64_t tile_rows, std::int64_t n, int multiprocessors) {
  return 3 * tile_rows * ((n + 127) / 128) >= multiprocessors;
}

// The tile whose blocks are done sooner: rounds over the SMs times columns. 128 columns are a tenth
// dearer each, for the rows that are read again.
constexpr WideTile choose_wide_tile(std::int64_t tile_rows, std::int64_t n, int multiprocessors) {
  const auto rounds = [&](std::int64_t columns) {
    return (tile_rows * ((n + columns - 1) / columns) + multiprocessors - 1) / multiprocessors;
  };
  return 2560 * rounds(256) <= 1408 * rounds(128) ? WideTile::n_256 : WideTile::n_128;
}

// bf16 operands, on the tensor cores of sm_90a (gemm_sm90.cu). Needs k > 0 and rows that begin on 16
// bytes: takes_sm90.
bool takes_sm90(const ConstTensor& a, const ConstTensor& b);
void run_sm90(Stream&, const Gemm&, WideTile);
void run_sm90(Stream&, const GroupedGemm&, WideTile);
void run_sm90(Stream&, const GroupedGemmWeightGradient&, WideTile);

// f32 operands, on the FFMA units (gemm_f32.cu): the correctness mode, without tf32's rounding.
void run_f32(Stream&, const Gemm&);
void run_f32(Stream&, const GroupedGemm&);
void run_f32(Stream&, const GroupedGemmWeightGradient&);

}  // namespace orchard::GPU_NAMESPACE
