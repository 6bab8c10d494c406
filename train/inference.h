// A trained model ready to be asked: loaded from a checkpoint, without gradients or optimizer.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "models/multimodal.h"
#include "train/checkpoint.h"
#include "train/step.h"

namespace orchard {

class InferenceModel {
 public:
  // `side`: pixels a side of a tile; 0 keeps the checkpoint's. Position tables are resized to it.
  // `longest` is the longest document it will see.
  InferenceModel(const std::filesystem::path& checkpoint, Device& device, DType dtype,
                 std::int64_t side, std::int64_t longest);

  const CheckpointInfo& info() const { return info_; }
  const ModelConfig& config() const { return model_->config(); }
  Stream& stream() { return *stream_; }
  // Losses of target rows: see StepRunner::evaluate.
  StepRunner& runner() { return *runner_; }

  // The `count` tokens that greedy decoding (the likeliest token, ties to the lower id) adds to a
  // prompt, fewer if one of `stop` comes first (it is not returned). `prompt` is one document in
  // one sequence without padding; its targets are ignored.
  std::vector<std::int32_t> generate(const MicroBatch& prompt, std::int64_t count,
                                     std::span<const std::int32_t> stop);

 private:
  CheckpointInfo info_;
  std::unique_ptr<Communicator> world_;
  ParallelContext alone_;
  std::unique_ptr<Stream> stream_;
  ParameterStore store_;
  std::unique_ptr<MultimodalModel> model_;
  std::unique_ptr<StepRunner> runner_;
  Arena arena_;
};

}  // namespace orchard
