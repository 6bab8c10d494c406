// Micro-batches from host memory to the device.
#pragma once

#include <deque>
#include <span>

#include "data/batch.h"
#include "data/sample.h"
#include "kernels/device/arena.h"
#include "kernels/device/host_memory.h"
#include "models/batch.h"
#include "models/config.h"

namespace orchard {

// Whether shapes come again, for graphs that are replayed by them.
enum class UploadShapes : std::uint8_t {
  exact,      // document_offsets are as long as there are documents
  repeating,  // and empty documents more, up to a multiple of document_multiple
};

// Few enough that attention, which launches blocks for each document, has not much to skip.
inline constexpr std::int64_t document_multiple = 8;

// Copies micro-batches into an arena; their patches, which are large, only where the chain's first
// link reads them. What it copies from is its own, so that the host need not wait for one micro-batch
// before it uploads the next, and is kept: warm uploads allocate nothing.
class BatchUploader {
 public:
  // The device must outlive it.
  BatchUploader(Device& device, const ModelConfig& config, DType dtype,
                UploadShapes shapes = UploadShapes::exact)
      : device_(device), config_(config), dtype_(dtype), shapes_(shapes) {}

  // All uploads so far have been copied: the next ones use their host memory again.
  void begin() { used_ = 0; }

  // The arena's tensors are ready in stream order. On the CPU patches are copied from the micro-batch
  // itself.
  DeviceBatch upload(Stream& stream, Arena& arena, const MicroBatch& batch,
                     PictureContent pictures = PictureContent::whole);

  // The counts of what upload returns, without tensors.
  DeviceBatch counts(const MicroBatch& batch) const;

 private:
  // Host memory that one upload copies from.
  struct Staging {
    explicit Staging(Device& device)
        : integers(HostAllocator<std::int32_t>(device)), patches(HostAllocator<float>(device)) {}

    HostVector<std::int32_t> integers;  // all lists of a micro-batch, one behind the other
    HostVector<float> patches;
  };

  void upload_lists(Stream& stream, Arena& arena, const MicroBatch& batch, Staging& staging,
                    DeviceBatch& out) const;
  ConstTensor upload_patches(Stream& stream, Arena& arena, const MicroBatch& batch,
                             Staging& staging) const;

  Device& device_;
  ModelConfig config_;
  DType dtype_;
  UploadShapes shapes_;
  std::deque<Staging> staging_;  // of each upload since begin, and more
  std::size_t used_ = 0;
};

}  // namespace orchard
