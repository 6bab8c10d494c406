#include "data/batch.h"

namespace orchard {

void drop_targets(MicroBatch& batch, std::int32_t document) {
  const auto d = static_cast<std::size_t>(document);
  for (std::int32_t row = batch.document_offsets[d]; row < batch.document_offsets[d + 1]; ++row) {
    std::int32_t& target = batch.targets[static_cast<std::size_t>(row)];
    batch.target_count -= target >= 0;
    target = -1;
  }
}

}  // namespace orchard
