#include "train/run_position.h"

#include "train/checkpoint.h"
#include "train/checkpoint_folder.h"

namespace orchard {

RunPosition newest_checkpoint(const std::filesystem::path& run_folder) {
  const auto newest = CheckpointFolder(run_folder).latest();
  if (!newest) return {};
  const CheckpointInfo info = read_checkpoint_info(*newest);
  return {.stage = info.stage, .step = info.step};
}

}  // namespace orchard
