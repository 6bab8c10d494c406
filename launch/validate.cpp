#include "launch/validate.h"

#include "data/mixture.h"
#include "train/layout_facts.h"

namespace orchard {
namespace {

// One tile a picture, or the most that splitting makes of it, the overview included.
std::int64_t most_tiles(const TilingOptions& tiling) {
  switch (tiling.mode) {
    case TilingMode::whole:
      return 1;
    case TilingMode::fixed:
      return 5;
    case TilingMode::dynamic:
      return tiling.max_tiles + 1;
  }
  return 0;
}

class Rules {
 public:
  explicit Rules(const ResolvedRun& run) : run_(run) {}

  // `name` is the option to blame.
  template <class... Args>
  void check(bool ok, std::string_view name, fmt::format_string<Args...> rule,
             Args&&... args) const {
    if (ok) return;
    throw ConfigurationError(
        fmt::format("{}: {}", run_.describe(name), fmt::format(rule, std::forward<Args>(args)...)));
  }
  void check_positive(std::int64_t value, std::string_view name) const {
    check(value > 0, name, "must be positive");
  }
  std::string see(std::string_view name) const { return run_.describe(name); }

 private:
  const ResolvedRun& run_;
};

void check_decoder(const Rules& rules, const DecoderConfig& d) {
  rules.check_positive(d.layers, "decoder.layers");
  rules.check_positive(d.hidden, "decoder.hidden");
  rules.check_positive(d.ffn, "decoder.ffn");
  rules.check_positive(d.kv_heads, "decoder.kv_heads");
  rules.check(d.heads > 0 && d.heads % d.kv_heads == 0, "decoder.heads", "must be a multiple of {}",
              rules.see("decoder.kv_heads"));
  rules.check(d.head_dim > 0 && d.head_dim % 2 == 0 && d.head_dim <= 256, "decoder.head_dim",
              "must be even (rotary pairs) and at most 256");
  rules.check(d.vocabulary == 0 || d.vocabulary >= 16, "decoder.vocabulary",
              "too small for the special tokens");
  if (d.moe.experts == 0) return;
  rules.check(d.moe.top_k <= d.moe.experts, "moe.top_k", "must be at most {}",
              rules.see("moe.experts"));
  rules.check(d.moe.every <= d.layers, "moe.every", "no layer would be sparse with {}",
              rules.see("decoder.layers"));
}

void check_vision(const Rules& rules, const ModelConfig& model) {
  const VisionConfig& v = model.vision;
  rules.check_positive(v.width, "vision.width");
  rules.check_positive(v.heads, "vision.heads");
  rules.check_positive(v.mlp_width, "vision.mlp_width");
  rules.check(v.width % v.heads == 0, "vision.width", "must be a multiple of {}",
              rules.see("vision.heads"));
  rules.check(v.features != FeatureLayer::penultimate || v.layers >= 2, "vision.features",
              "needs two layers, and {}", rules.see("vision.layers"));
  rules.check_positive(model.connector.hidden, "connector.hidden");
}

void check_pictures(const Rules& rules, const ModelConfig& model, const StageConfig& stage) {
  const auto key = [&](const char* name) { return fmt::format("stage{}.{}", stage.number, name); };
  rules.check(stage.side > 0 && stage.side % model.vision.patch == 0, key("side"),
              "must be a multiple of {}", rules.see("vision.patch"));
  const std::int64_t grid = stage.side / model.vision.patch;
  rules.check(grid >= model.connector.out_side, key("side"),
              "gives {} patches a side, too few for {}", grid, rules.see("connector.out_side"));
  rules.check(stage.tiling.min_tiles <= stage.tiling.max_tiles, key("min_tiles"),
              "must be at most {}", rules.see(key("max_tiles")));
  // A picture is never cut, so one that is split to the limit must leave room for some text.
  const std::int64_t rows = most_tiles(stage.tiling) * model.connector.tokens();
  rules.check(stage.sequence_length > rows, key("sequence_length"),
              "a picture may take {} tiles of {} rows, {} in all ({}, {}), and text must follow it",
              most_tiles(stage.tiling), model.connector.tokens(), rows, rules.see(key("tiling")),
              rules.see("connector.out_side"));
}

void check_stage(const Rules& rules, const RunConfig& run, const StageConfig& stage) {
  const auto key = [&](const char* name) { return fmt::format("stage{}.{}", stage.number, name); };
  rules.check_positive(stage.global_batch, key("global_batch"));
  rules.check(stage.sequence_length >= 2, key("sequence_length"),
              "must hold a token and the one it predicts");
  rules.check(stage.warmup <= stage.steps, key("warmup"), "longer than the stage, {}",
              rules.see(key("steps")));
  rules.check(stage.optimizer.beta1 < 1, key("beta1"), "must be below 1");
  rules.check(stage.optimizer.beta2 < 1, key("beta2"), "must be below 1");
  try {
    named_mixture(stage.mixture, {});
  } catch (const Error& error) {
    rules.check(false, key("mixture"), "{}", error.what());
  }
  if (run.model.has_vision()) check_pictures(rules, run.model, stage);
}

void check_layout(int ranks, const Layout& layout, const LayoutFacts& facts) {
  try {
    require_possible(ranks, layout, facts);
  } catch (const Error& error) {
    throw ConfigurationError(error.what());
  }
}

// The rule of a possible layout that is blamed on an option of the recipe.
void check_global_batches(const ResolvedRun& run, int ranks, const LayoutFacts& facts) {
  const RunConfig config = run.config();
  LayoutFacts without_batches = facts;
  without_batches.batches.clear();
  if (broken_rule(ranks, config.layout, without_batches)) return;  // which is refused by name
  const int replicas = config.layout.data(ranks);
  for (const StageConfig& stage : config.stages) {
    Rules(run).check(stage.global_batch % replicas == 0,
                     fmt::format("stage{}.global_batch", stage.number),
                     "does not divide evenly among the {} replicas of the model on {} ranks with "
                     "{}, {}; {}",
                     replicas, ranks, run.describe("layout.tp"), run.describe("layout.pp"),
                     nearest_layout_text(ranks, config.layout, facts));
  }
}

// Before a layout is proposed that has stages in such a schedule.
void check_chunks(const ResolvedRun& run, const RunConfig& config) {
  const PipelineOptions& pipeline = config.pipeline;
  if (config.layout.pipeline == 1 || pipeline.schedule == ScheduleKind::interleaved) return;
  const int chunks = default_chunks(pipeline.schedule);
  Rules(run).check(pipeline.chunks_of_rank() == chunks, "layout.pipeline_chunks",
                   "schedule {} has {} chunk{} a rank, not {}; interleaved takes any",
                   name_of(pipeline.schedule), chunks, chunks > 1 ? "s" : "", pipeline.chunks);
}

// That ranks do not share GPUs is known where they are connected.
void check_graphs(const ResolvedRun& run, const RunConfig& config) {
  if (config.graphs == Graphs::no) return;
  const Rules rules(run);
  const Layout& layout = config.layout;
  rules.check(layout.pipeline == 1, "run.graphs",
              "graphs hold no messages of pipelines, and there is one with {}",
              rules.see("layout.pp"));
  const bool layers_apart = layout.tensor > 1;
  const bool experts_apart = layout.expert * layout.expert_tensor > 1;
  if (!layers_apart && !experts_apart) return;
  const std::string experts = rules.see(layout.expert > 1 ? "layout.ep" : "layout.etp");
  rules.check(!layers_apart || !experts_apart, "run.graphs",
              "a graph holds the messages of tensor ranks or of experts, not both: {}, {}",
              rules.see("layout.tp"), experts);
  rules.check(!experts_apart || config.model.decoder.moe.capacity_factor > 0, "run.graphs",
              "the host reads how many rows experts on other ranks ({}) are sent, unless they have "
              "a capacity: {}",
              experts, rules.see("moe.capacity_factor"));
  rules.check(!experts_apart || config.experts.messages == ExpertMessages::fixed, "run.graphs",
              "the host reads how many rows experts on other ranks ({}) are sent: {}", experts,
              rules.see("layout.moe_messages"));
  rules.check(config.device != DeviceKind::cpu && config.transport != DeviceTransport::host,
              "run.graphs", "messages that pass through host memory are no part of a graph: {}, {}",
              rules.see("run.device"), rules.see("run.transport"));
}

// That the model has enough blocks is a rule of the layout.
void check_pipeline(const ResolvedRun& run, const RunConfig& config) {
  try {
    cut_pipeline(config.model, config.pipeline, config.layout.pipeline, Workload{});
  } catch (const Error& error) {
    const bool cut = !config.pipeline.stage_blocks.empty();
    throw ConfigurationError(fmt::format(
        "{}, {}: {}", run.describe("layout.pp"),
        run.describe(cut ? "layout.stage_blocks" : "layout.pipeline_chunks"), error.what()));
  }
}

}  // namespace

void validate(const ResolvedRun& run, const RunConfig& config) {
  const Rules rules(run);
  check_decoder(rules, config.model.decoder);
  if (config.model.has_vision()) check_vision(rules, config.model);
  rules.check(!config.stages.empty(), "stage1.steps", "no stage has steps, so there is no run");
  for (const StageConfig& stage : config.stages) check_stage(rules, config, stage);
  // What the model itself demands, where it is stricter than the rules above.
  ModelConfig model = config.model;
  if (model.decoder.vocabulary == 0) model.decoder.vocabulary = 1024;
  try {
    model.validate();
  } catch (const Error& error) {
    throw ConfigurationError(error.what());
  }
}

void validate_ranks(const ResolvedRun& run, int ranks) {
  const RunConfig config = run.config();
  const LayoutFacts facts = layout_facts(config, config.model);
  check_chunks(run, config);
  check_global_batches(run, ranks, facts);
  check_layout(ranks, config.layout, facts);
  check_graphs(run, config);
  check_pipeline(run, config);
}

void validate_vocabulary(const ResolvedRun& run, std::int64_t tokenizer_vocabulary, int ranks) {
  const RunConfig config = run.config();
  const std::int64_t vocabulary = config.model.decoder.vocabulary;
  if (vocabulary == 0) {
    LayoutFacts facts = layout_facts(config, config.model);
    facts.vocabulary = tokenizer_vocabulary;
    check_layout(ranks, config.layout, facts);
    return;
  }
  Rules(run).check(vocabulary == 0 || vocabulary >= tokenizer_vocabulary, "decoder.vocabulary",
                   "too few, the training set's tokenizer has {}; 0 takes as many as that",
                   tokenizer_vocabulary);
}

void validate_pictures(const ResolvedRun& run, std::size_t pictures) {
  Rules(run).check(run.config().model.has_vision() || pictures == 0, "vision.layers",
                   "a text-only model, and the training set holds {} pictures: choose a recipe "
                   "with a vision tower, or a training set of text",
                   pictures);
}

}  // namespace orchard
