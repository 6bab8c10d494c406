#include <fmt/format.h>

#include "comm/flight_recorder.h"
#include "data/hdf5.h"
#include "data/training_set.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/configuration_error.h"
#include "launch/error_terminal.h"
#include "launch/inspect_ring.h"
#include "models/multimodal.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/model_json.h"
#include "train/progress.h"
#include "train/report.h"

namespace orchard {
namespace {

namespace fs = std::filesystem;

constexpr const char* usage =
    "usage: orchard inspect PATH [--verify] [--check-claims]\n\n"
    "Lists what a checkpoint (a .h5 file), a training set or a run (folders) contains, or what a\n"
    "rank communicated last (a .ring file of the run's rings/).";

void inspect_training_set(const fs::path& folder, bool verify) {
  const TrainingSet set = TrainingSet::open(folder);
  struct Count {
    std::int64_t train = 0, held_out = 0, tokens = 0, pictures = 0;
  };
  const TrainingSetIndex& index = set.index();
  std::vector<Count> counts(index.categories.size());
  for (const SampleRecord& sample : index.samples) {
    Count& count = counts[static_cast<std::size_t>(sample.category)];
    ++(sample.split == Split::train ? count.train : count.held_out);
    count.tokens += sample.token_count;
    count.pictures += sample.picture_count;
  }
  fmt::print("training set {}: {} samples, {} pictures, vocabulary {}\n", folder.string(),
             index.samples.size(), index.pictures.size(), index.vocabulary);
  fmt::print("contents {}, tokenizer {}\n\n", set.hash(), set.tokenizer().hash());
  fmt::print("{:<16}{:>10}{:>10}{:>12}{:>10}\n", "category", "train", "held out", "tokens",
             "pictures");
  for (std::size_t c = 0; c < counts.size(); ++c) {
    fmt::print("{:<16}{:>10}{:>10}{:>12}{:>10}\n", index.categories[c], counts[c].train,
               counts[c].held_out, counts[c].tokens, counts[c].pictures);
  }
  if (!verify) return;
  Terminal terminal = error_terminal();
  set.verify(patient_progress(terminal, "verifying", "shards"));
  fmt::print("\nall shards verified\n");
}

// Reads every parameter, which compares checksums, into a model of the checkpoint's dimensions.
void verify_checkpoint(const fs::path& path, const std::string& model) {
  const std::unique_ptr<Device> device = make_cpu_device();
  const std::unique_ptr<Stream> stream = device->make_stream();
  ParameterStore store;
  const MultimodalModel declared(store, model_from_json(model));
  store.allocate(*device, *stream, DType::bf16, ParameterUse::forward);
  Terminal terminal = error_terminal();
  load_parameters(path, *stream, store, PositionTables::exact,
                  patient_progress(terminal, "verifying", "tensors"));
  fmt::print("all parameters verified\n");
}

void inspect_checkpoint(const fs::path& path, bool verify) {
  const CheckpointInfo info = read_checkpoint_info(path);
  fmt::print("checkpoint {}: stage {}, step {}{}, {} sequences, seed {}\n", path.string(),
             info.stage, info.step, info.stage_finished ? " (its end)" : "", info.sequences,
             info.seed);
  fmt::print("tokenizer {}\nmodel {}\n\n", info.tokenizer_hash, info.model);
  const hdf5::File file = hdf5::File::open(path);
  const std::vector<std::string> names = file.links("parameters");
  std::int64_t total = 0;
  for (const std::string& name : names) {
    const hdf5::Dataset dataset = file.dataset("parameters/" + name);
    fmt::print("{:<50} {}\n", name, dataset.shape());
    total += dataset.shape().numel();
  }
  fmt::print("\n{} parameters in {} tensors\n", total, names.size());
  if (verify) verify_checkpoint(path, info.model);
}

// Where the held-out loss of each stage began and ended, and whether that is what a run claims.
bool inspect_run(const fs::path& folder) {
  const RunMetrics metrics = read_metrics(folder);
  const ReportClaims claims;
  bool all_hold = true;
  const auto judge = [&](bool holds) {
    all_hold = all_hold && holds;
    return holds ? "holds" : "FAILS";
  };
  fmt::print("run {}: {} steps, {} validations\n", folder.string(), metrics.steps.size(),
             metrics.validations.size());
  const auto& validations = metrics.validations;
  for (std::size_t first = 0, end = 0; first < validations.size(); first = end) {
    while (end < validations.size() && validations[end].stage == validations[first].stage) ++end;
    const ValidationEvent &start = validations[first], &last = validations[end - 1];
    const double ratio = last.report.loss / start.report.loss;
    fmt::print(
        "stage {}: held-out loss {:.4f} at step {}, {:.4f} at step {} of {}: ratio {:.3f}, "
        "at most {}: {}\n",
        start.stage, start.report.loss, start.step, last.report.loss, last.step, last.steps, ratio,
        claims.loss_ratio, judge(ratio <= claims.loss_ratio));
  }
  if (validations.empty()) return false;
  const SwapReport& swap = validations.back().report.swap;
  fmt::print(
      "at the end, {} samples with each other's pictures lose {:.4f} more: {:.1f} standard "
      "errors, above {}: {}\n",
      swap.samples, swap.difference, swap.z(), claims.swap_z, judge(swap.z() > claims.swap_z));
  return all_hold;
}

}  // namespace

int command_inspect(Arguments arguments) {
  bool verify = false, check_claims = false;
  CommandLine line(usage);
  line.options().add_options()  //
      ("path", program_options::value<std::string>(),
       "checkpoint, training set, run or ring; also without --path")                              //
      ("verify", program_options::bool_switch(&verify), "read everything and compare checksums")  //
      ("check-claims", program_options::bool_switch(&check_claims),
       "of a run: fail unless each stage lowers its held-out loss and the model looks at pictures");
  line.collect_positional("path");
  if (line.parse(arguments) == CommandLine::Outcome::helped) return 0;
  const fs::path path = line.required("path");
  require_configuration(fs::exists(path), "there is no {}", path.string());
  if (fs::exists(metrics_path(path))) {
    return inspect_run(path) || !check_claims ? 0 : exit_failure;
  }
  require_configuration(!check_claims, "--check-claims: {} is not the folder of a run",
                        path.string());
  if (fs::is_directory(path)) {
    inspect_training_set(path, verify);
  } else if (FlightFile::is_one(path)) {
    inspect_ring(path);
  } else {
    inspect_checkpoint(path, verify);
  }
  return 0;
}

}  // namespace orchard
