// The checkpoints of a run, by stage and step.
#pragma once

#include <filesystem>
#include <optional>

namespace orchard {

// checkpoints/stage<k>.h5 are the weights at a stage's end; checkpoints/stage<k>-step<n>.h5 those
// on the way.
class CheckpointFolder {
 public:
  explicit CheckpointFolder(const std::filesystem::path& run_folder);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path at_step(int stage, std::int64_t step) const;
  std::filesystem::path final_of(int stage) const;
  bool empty() const { return !latest().has_value(); }
  // The newest by (stage, step); the end of a stage is newer than all its steps.
  std::optional<std::filesystem::path> latest() const;
  // Removes the checkpoints on the way of `stage`, but for the newest `keep`.
  void prune(int stage, std::int64_t keep) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace orchard
