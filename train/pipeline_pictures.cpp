#include "train/pipeline_pictures.h"

#include <algorithm>

namespace orchard {

PictureContent picture_content(const ParallelContext& ranks) {
  const int first = ranks.stages().place_of(0).rank;
  return ranks.coordinates().pipeline == first ? PictureContent::whole : PictureContent::absent;
}

void share_bad_documents(const ParallelContext& ranks, std::span<MicroBatch> micro_batches) {
  const auto has_pictures = [](const MicroBatch& batch) { return batch.tiles > 0; };
  if (ranks.stages().ranks() == 1 || std::ranges::none_of(micro_batches, has_pictures)) return;
  std::vector<double> bad;  // of every document, one after the other
  for (const MicroBatch& batch : micro_batches) {
    const std::size_t first = bad.size();
    bad.resize(first + batch.document_offsets.size() - 1);
    for (const std::int32_t document : batch.bad_documents)
      bad[first + static_cast<std::size_t>(document)] = 1;
  }
  ranks[MeshGroup::pipeline].max_on_host(bad);
  auto next = bad.begin();
  for (MicroBatch& batch : micro_batches) {
    for (std::int32_t document = 0; document + 1 < std::ssize(batch.document_offsets); ++document) {
      if (*next++ > 0) drop_targets(batch, document);
    }
  }
}

}  // namespace orchard
