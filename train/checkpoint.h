// Checkpoints: one HDF5 file with every parameter as a plain dataset under its global name and
// shape.
//
//   /parameters/<name>         f32, row-major, the master weights
//   /optimizer/<slot>/<name>   f32, the optimizer's state (m, v, v_row, v_col); absent in files of
//                              weights only
//   attributes of the file     orchard_checkpoint (format version), stage, step, sequences, seed,
//                              stage_finished, tokenizer, model (JSON), kind of optimizer
//   attribute xxh3 of each     XXH3-128 of the dataset's bytes, verified on load
//
// The file does not depend on the layout of the ranks that wrote it, and any layout reads it.
// A file appears under its name only when it is whole and on disk (data/atomic_file.h).
// docs/parameters.md lists the names.
#pragma once

#include <filesystem>
#include <string>

#include "train/optimizer.h"
#include "train/progress.h"

namespace orchard {

struct CheckpointInfo {
  int stage = 0;               // that the weights come from
  std::int64_t step = 0;       // optimizer steps done in it
  std::int64_t sequences = 0;  // packed sequences consumed in it: the data's resume state
  std::uint64_t seed = 0;
  bool stage_finished = false;
  std::string tokenizer_hash;
  std::string model;  // the model's dimensions as JSON, see model_json
};

// All ranks of the job call it together; the first writes, tensor after tensor as they come from
// their owners, and holds one of them at a time. The others may return before the file is whole.
// Waits for the stream. `progress` hears of tensors.
void save_checkpoint(const std::filesystem::path& path, const CheckpointInfo& info, Stream& stream,
                     Communicator& ranks, const ParameterStore& store, const Optimizer& optimizer,
                     const ProgressHook& progress = {});

// Throws Error naming the file when it is not a checkpoint or of an unknown format.
CheckpointInfo read_checkpoint_info(const std::filesystem::path& path);

// What may differ between the file and the store.
enum class PositionTables : std::uint8_t {
  exact,    // every shape must agree
  resized,  // vision.positions and connector.positions are resized to the store's grid (mm15.md
            // §10)
};

// Fills what this rank has of the masters and values of every parameter. Throws Error naming the first parameter that
// is missing, of another shape, or damaged, and those in the file that the store does not know.
void load_parameters(const std::filesystem::path& path, Stream& stream, ParameterStore& store,
                     PositionTables positions, const ProgressHook& progress = {});

// Throws when the file has no state, or that of another kind of optimizer.
void load_optimizer(const std::filesystem::path& path, Stream& stream, const Optimizer& optimizer);

}  // namespace orchard
