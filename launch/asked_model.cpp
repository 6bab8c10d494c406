#include "launch/asked_model.h"

#include <algorithm>

#include "launch/configuration_error.h"
#include "train/checkpoint_folder.h"
#include "train/layout_facts.h"
#include "train/model_json.h"

namespace orchard {
namespace {

namespace fs = std::filesystem;

// A run's checkpoints lie in its folder's folder checkpoints/.
fs::path run_folder_of(const fs::path& checkpoint) {
  return fs::absolute(checkpoint).parent_path().parent_path();
}

fs::path newest_checkpoint_of(const fs::path& run_folder) {
  require_configuration(!run_folder.empty(),
                        "name a checkpoint with --checkpoint, or a run with --run-folder");
  const auto latest = CheckpointFolder(run_folder).latest();
  require_configuration(latest.has_value(),
                        "{} holds no checkpoint: name a run that `orchard train` has begun with "
                        "--run-folder, or a file with --checkpoint",
                        run_folder.string());
  return *latest;
}

StageConfig stage_of(const RunConfig& run, int number, const fs::path& checkpoint) {
  const auto found = std::find_if(run.stages.begin(), run.stages.end(),
                                  [&](const StageConfig& s) { return s.number == number; });
  require_configuration(found != run.stages.end(),
                        "the recipe has no stage {}, which {} would be asked in: name one of its "
                        "stages with --stage",
                        number, checkpoint.string());
  return *found;
}

bool has_layout(const RunSources& sources) {
  return std::ranges::any_of(run_options(), [&](const RunOption& option) {
    return option.section() == "layout" && !given_value(sources, option.name).empty();
  });
}

// Cut for sequences of text with a picture each: what will be asked is not known. The cut of the
// training need not be the same.
PipelineStages stages_of(const AskedModel& asked) {
  const std::int64_t rows = asked.stage.sequence_length;
  const bool sees = asked.run.model.has_vision();
  ModelConfig model = asked.run.model;
  if (sees) model.vision.side = asked.stage.side;
  return cut_pipeline(model, asked.run.pipeline, asked.run.layout.pipeline,
                      {.tokens = rows,
                       .document_length = static_cast<double>(rows),
                       .targets = rows,
                       .tiles = sees ? 1 : 0});
}

void check_layout(const AskedModel& asked, int ranks) {
  const Layout& layout = asked.run.layout;
  LayoutFacts facts = layout_facts(asked.run, asked.run.model);
  facts.batches.clear();  // asking has no steps
  try {
    require_possible(ranks, layout, facts);
    stages_of(asked);
  } catch (const Error& error) {
    throw ConfigurationError(error.what());
  }
}

}  // namespace

void add_model_arguments(CommandLine& line) {
  using program_options::value;
  line.options().add_options()  //
      ("checkpoint", value<std::string>(),
       "checkpoint to ask; else the newest of the run folder")  //
      ("stage", value<int>(),
       "stage whose tiling, marks and mixture hold; else that of the checkpoint");
  add_run_arguments(line);
}

AskedModel find_model(const CommandLine& line, int ranks) {
  AskedModel asked;
  RunSources sources = run_sources(line);
  fs::path run_folder = given_value(sources, "run.run_folder");
  asked.checkpoint = line.text("checkpoint");
  if (asked.checkpoint.empty()) asked.checkpoint = newest_checkpoint_of(run_folder);
  require_configuration(fs::is_regular_file(asked.checkpoint), "there is no checkpoint {}",
                        asked.checkpoint.string());
  if (run_folder.empty()) run_folder = run_folder_of(asked.checkpoint);

  if (sources.recipe.empty()) {
    const fs::path resolved = run_folder / resolved_recipe_name;
    if (!fs::exists(resolved)) fail_without_recipe();
    sources.recipe = fs::absolute(resolved).string();
  }
  asked.run_folder = run_folder;
  asked.run = ResolvedRun(sources).config();
  const CheckpointInfo info = read_checkpoint_info(asked.checkpoint);
  const ModelConfig stored = model_from_json(info.model);
  const std::string difference = model_difference(stored, asked.run.model);
  require_configuration(difference.empty(), "{} holds another model than recipe {} describes: {}",
                        asked.checkpoint.string(), sources.recipe, difference);
  asked.run.model.decoder.vocabulary = stored.decoder.vocabulary;
  asked.stage = stage_of(asked.run, line.has("stage") ? line.get<int>("stage") : info.stage,
                         asked.checkpoint);
  if (ranks == 1 && !has_layout(sources)) asked.run.layout = {};
  check_layout(asked, ranks);
  return asked;
}

ParallelContext context_of(const AskedModel& asked, Communicator& ranks) {
  return ParallelContext(ranks, asked.run.layout, asked.run.sequence_parallel, stages_of(asked));
}

std::unique_ptr<InferenceModel> load_model(const AskedModel& asked, Device& device,
                                           const ParallelContext& ranks, std::int64_t longest) {
  const InferenceOptions options{.dtype = asked.run.dtype,
                                 .side = asked.run.model.has_vision() ? asked.stage.side : 0,
                                 .longest = longest,
                                 .experts = asked.run.experts};
  return std::make_unique<InferenceModel>(asked.checkpoint, device, ranks, options);
}

Tokenizer open_tokenizer(const AskedModel& asked) {
  require_configuration(!asked.run.training_set.empty(),
                        "--training-set is missing: its tokenizer is needed");
  Tokenizer tokenizer = Tokenizer::open(asked.run.training_set / "tokenizer.model");
  const std::string trained_with = read_checkpoint_info(asked.checkpoint).tokenizer_hash;
  require(tokenizer.hash() == trained_with,
          "{} was trained with another tokenizer ({}) than that of {} ({}): name its training set "
          "with --training-set",
          asked.checkpoint.string(), trained_with, asked.run.training_set.string(),
          tokenizer.hash());
  return tokenizer;
}

}  // namespace orchard
