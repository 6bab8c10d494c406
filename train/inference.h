// A trained model ready to be asked: loaded from a checkpoint, without gradients or optimizer.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "models/multimodal.h"
#include "train/checkpoint.h"
#include "train/step.h"

namespace orchard {

struct InferenceOptions {
  DType dtype = DType::f32;
  std::int64_t side = 0;  // pixels a side of a tile, to which position tables are resized; 0: the
                          // checkpoint's
  std::int64_t longest = 0;  // rows of the longest document it will see
  ExpertDispatchOptions experts = {};
};

class InferenceModel {
 public:
  // All ranks make theirs together, whatever layout wrote the checkpoint. `device` and `ranks` must
  // outlive it.
  InferenceModel(const std::filesystem::path& checkpoint, Device& device,
                 const ParallelContext& ranks, const InferenceOptions& options);

  const CheckpointInfo& info() const { return info_; }
  const ModelConfig& config() const { return model_->config(); }
  const ParallelContext& ranks() const { return ranks_; }
  Stream& stream() { return *stream_; }
  // Losses of target rows: see StepRunner::evaluate.
  StepRunner& runner() { return *runner_; }

  // The `count` tokens that greedy decoding (the likeliest token, ties to the lower id) adds to a
  // prompt, fewer if one of `stop` comes first (it is not returned). `prompt` is one document in
  // one sequence without padding; its targets are ignored. All ranks ask for the same, and get it.
  std::vector<std::int32_t> generate(const MicroBatch& prompt, std::int64_t count,
                                     std::span<const std::int32_t> stop);

 private:
  CheckpointInfo info_;
  const ParallelContext& ranks_;
  std::unique_ptr<Stream> stream_;
  ParameterStore store_;
  std::unique_ptr<MultimodalModel> model_;
  std::unique_ptr<StepRunner> runner_;
  Arena arena_;
};

}  // namespace orchard
