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

// f32 operands, on the FFMA units (gemm_f32.cu): the correctness mode, without tf32's rounding.
void run_f32(Stream&, const Gemm&);
void run_f32(Stream&, const GroupedGemm&);
void run_f32(Stream&, const GroupedGemmWeightGradient&);

}  // namespace orchard::GPU_NAMESPACE
