// Planned sequences to micro-batches: reads samples, expands their tokens, renders their pictures.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "data/batch.h"
#include "data/expand.h"
#include "data/packing.h"
#include "data/picture.h"
#include "data/render.h"

namespace orchard {

// Where samples come from. Both throw Error when the sample is bad; DamagedFile and anything else
// they throw ends the run.
struct SampleSource {
  std::function<Sample(std::int64_t)> read;  // by number in the index
  std::function<Picture(const EncodedPicture&)> decode;
};

struct BadSample {
  std::int64_t sample = 0;
  std::string id{};  // empty when it could not be read at all
  std::string reason{};
};

struct BatchBuilderOptions {
  std::int64_t patch = 14;  // pixels a side; divides the tile's side
  // Absent: nothing is decoded, bad pictures are not found, and samples may come without.
  PictureContent pictures = PictureContent::whole;
  std::int64_t bad_in_a_row_limit = 100;
  std::function<void(const BadSample&)> on_bad{};  // called on the building thread
};

// A sample that cannot be read, decoded or matched with the index keeps its rows: its text as input
// where that could be read, pictures in the mean colour (zeros after normalisation), no targets.
class BatchBuilder {
 public:
  // Renders on `device`, which must be a CPU's and be driven by the building thread alone. The
  // layout must outlive the builder.
  BatchBuilder(const SampleLayout& layout, SampleSource source, BatchBuilderOptions options,
               Device& device);

  // Throws when the limit of bad samples in a row is reached, counted over batches.
  MicroBatch build(std::span<const PackedSequence> sequences);

  std::int64_t bad_samples() const { return bad_samples_; }

 private:
  void add_sample(const PackedSample& packed, MicroBatch& batch);
  static void add_padding(std::int64_t rows, MicroBatch& batch);
  // Those of the next sample; none where pictures are left out.
  std::span<float> patches_of(const PackedSample& packed, MicroBatch& batch) const;
  SampleRows read_sample(const PackedSample& packed, MicroBatch& batch);
  // The tiles of all pictures of sample `number`.
  void render(const Sample& sample, std::int64_t number, float* patches);
  void note_bad(const BadSample& bad);

  const SampleLayout& layout_;
  SampleSource source_;
  BatchBuilderOptions options_;
  PictureRenderer renderer_;
  std::int64_t bad_samples_ = 0;
  std::int64_t bad_in_a_row_ = 0;
};

}  // namespace orchard
