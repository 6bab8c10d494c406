// A micro-batch on the device, and the scales of its losses.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/tensor.h"

namespace orchard {

// Rows are packed sequences of equal length, one after the other; documents lie inside sequences.
struct DeviceBatch {
  std::int64_t rows = 0;  // sequences · sequence length
  std::int64_t sequences = 0;
  ConstTensor sources;           // i32 [rows]: >= 0 token id, < 0 visual row -1 - source
  ConstTensor positions;         // i32 [rows]
  ConstTensor document_offsets;  // i32 [documents + 1]; the last ones may be empty
  ConstTensor sequence_offsets;  // i32 [sequences + 1]
  ConstTensor real_rows;         // i32 [sequences]
  // Rows that predict a target, in order; padded with -1 to a multiple of target_multiple.
  ConstTensor target_rows;  // i32 [padded targets]
  ConstTensor target_ids;   // i32 [padded targets]
  std::int64_t targets = 0;

  std::int64_t tiles = 0;       // 0: the micro-batch holds no picture
  ConstTensor patches;          // [tiles, patches, patch_values], the model's dtype
  std::int64_t tower_rows = 0;  // of the vision tower: tiles · (patches + 1), class tokens included
  ConstTensor tile_offsets;     // i32 [tiles + 1]: rows of each tile in the tower
};

// Target rows are padded so that the head's matrix shapes repeat from batch to batch.
inline constexpr std::int64_t target_multiple = 64;

// What one micro-batch contributes to the step's loss:
//   target · sum of cross-entropies + balance · sum over sequences and layers + z · sum over tokens
//   and layers
// Each is f32 [1] on the device, or absent: then the first is 1, and the others 0.
struct LossScales {
  ConstTensor target;   // 1 / target tokens of the step
  ConstTensor balance;  // balance weight / sequences of the step
  ConstTensor z;        // z weight / real tokens of the step
};

}  // namespace orchard
