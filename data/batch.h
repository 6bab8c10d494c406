// One micro-batch in host memory, as the model takes it.
#pragma once

#include <cstdint>
#include <vector>

namespace orchard {

// `sequences` packed sequences of `length` rows each; row r of sequence s is s·length + r. Padding
// fills the tail of a sequence: token_pad, no target, position 0, a document of its own.
struct MicroBatch {
  std::int64_t sequences = 0;
  std::int64_t length = 0;
  std::vector<std::int32_t> sources;           // [rows] >= 0 token id; < 0 visual row -1 - source
  std::vector<std::int32_t> targets;           // [rows] id that follows, or -1
  std::vector<std::int32_t> positions;         // [rows] from 0 in each document
  std::vector<std::int32_t> document_offsets;  // [documents + 1] rows
  std::vector<std::int32_t> real_rows;         // [sequences] rows that are not padding
  std::vector<std::int32_t> category;          // [rows] index of the sample's category, -1 padding
  std::vector<std::int64_t> sample;  // [rows] number of the sample in the index, -1 padding
  std::int64_t tiles = 0;            // picture tiles, each of tokens_per_tile visual rows, in order
  // [tiles, patches per tile, 3·patch²]; empty where the pictures' contents are absent.
  std::vector<float> patches;
  std::int64_t target_count = 0;  // rows with a target; losses are divided by the planned count
  std::vector<std::int32_t> bad_documents;  // kept in place without targets
};

// Takes the targets of a document away.
void drop_targets(MicroBatch& batch, std::int32_t document);

}  // namespace orchard
