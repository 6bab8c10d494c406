// Micro-batches from host memory to the device.
#pragma once

#include "data/batch.h"
#include "data/sample.h"
#include "kernels/device/arena.h"
#include "models/batch.h"
#include "models/config.h"

namespace orchard {

// Copies micro-batches into an arena; their patches, which are large, only where the chain's first
// link reads them. Keeps its staging memory, so a warm upload allocates nothing. The arena's tensors
// are ready in stream order; the MicroBatch must stay untouched until the stream is synchronised.
class BatchUploader {
 public:
  BatchUploader(const ModelConfig& config, DType dtype) : config_(config), dtype_(dtype) {}

  DeviceBatch upload(Stream& stream, Arena& arena, const MicroBatch& batch,
                     PictureContent pictures = PictureContent::whole);

  // The counts of what upload returns, without tensors.
  DeviceBatch counts(const MicroBatch& batch) const;

 private:
  ModelConfig config_;
  DType dtype_;
  std::vector<std::int32_t> sequence_offsets_, target_rows_, target_ids_, tile_offsets_;
};

}  // namespace orchard
