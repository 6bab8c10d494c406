#include "launch/run_options.h"

#include <algorithm>
#include <map>

#include "launch/layout_options.h"
#include "launch/option_fields.h"

namespace orchard {
namespace {

constexpr ChoiceNames<DType, 2> dtypes{{{"f32", DType::f32}, {"bf16", DType::bf16}}};
constexpr ChoiceNames<DeviceKind, 3> devices{
    {{"cpu", DeviceKind::cpu}, {"cuda", DeviceKind::cuda}, {"simt", DeviceKind::simt}}};
constexpr ChoiceNames<GpuArch, 2> gpu_archs{
    {{"sm_80", GpuArch::sm_80}, {"sm_90a", GpuArch::sm_90a}}};
constexpr ChoiceNames<DeviceTransport, 2> transports{
    {{"auto", DeviceTransport::automatic}, {"host", DeviceTransport::host}}};
constexpr ChoiceNames<FeatureLayer, 3> feature_layers{{{"post_norm", FeatureLayer::post_norm},
                                                       {"last", FeatureLayer::last},
                                                       {"penultimate", FeatureLayer::penultimate}}};
constexpr ChoiceNames<Recompute, 2> recomputes{
    {{"none", Recompute::none}, {"blocks", Recompute::blocks}}};
constexpr ChoiceNames<BalanceCounts, 2> balance_counts{
    {{"first_choice", BalanceCounts::first_choice}, {"all_choices", BalanceCounts::all_choices}}};
constexpr ChoiceNames<TilingMode, 3> tiling_modes{
    {{"whole", TilingMode::whole}, {"fixed", TilingMode::fixed}, {"dynamic", TilingMode::dynamic}}};
constexpr ChoiceNames<GridReading, 2> grid_readings{
    {{"longer_side", GridReading::longer_side}, {"fit", GridReading::fit}}};
constexpr ChoiceNames<MarkStyle, 3> mark_styles{{{"none", MarkStyle::none},
                                                 {"separators", MarkStyle::separators},
                                                 {"index", MarkStyle::index}}};
constexpr ChoiceNames<TargetPolicy, 2> target_policies{
    {{"text", TargetPolicy::text}, {"assistant", TargetPolicy::assistant}}};
constexpr ChoiceNames<OptimizerKind, 2> optimizers{
    {{"adamw", OptimizerKind::adamw}, {"adafactor", OptimizerKind::adafactor}}};

constexpr ChoiceNames<Graphs, 2> graph_choices{{{"no", Graphs::no}, {"yes", Graphs::yes}}};

constexpr IntegerBounds from_0{.least = 0}, from_1{.least = 1};
constexpr RealBounds positive{.kind = RealBounds::Least::excluded}, not_negative{},
    fraction{.most = 1};

void add_run(std::vector<RunOption>& options) {
  options.push_back(text_option(
      {"run.training_set", "folder that orchard pack wrote"}, "a path",
      [](auto& r) -> auto& { return r.training_set; }));
  options.push_back(text_option(
      {"run.run_folder", "checkpoints, metrics and resolved.ini go here"}, "a path",
      [](auto& r) -> auto& { return r.run_folder; }));
  options.push_back(choice_option(
      {"run.device", "where the model lives; simt: the CUDA path, emulated and checked"}, devices,
      [](auto& r) -> auto& { return r.device; }));
  options.push_back(choice_option(
      {"run.simt_arch", "device simt: the architecture whose kernels the emulated GPU runs"},
      gpu_archs, [](auto& r) -> auto& { return r.simt_arch; }));
  options.push_back(choice_option(
      {"run.transport",
       "auto: data of several GPUs goes over NCCL, or through host memory where ranks share one; "
       "host: always through host memory"},
      transports, [](auto& r) -> auto& { return r.transport; }));
  options.push_back(choice_option(
      {"run.dtype", "activations; weights keep fp32 masters"}, dtypes,
      [](auto& r) -> auto& { return r.dtype; }));
  options.push_back(choice_option(
      {"run.graphs",
       "record micro-batches as graphs, by shape, and replay them; not with layout.pp, with "
       "layout.ep or layout.etp only where moe.capacity_factor is set and layout.tp is 1"},
      graph_choices, [](auto& r) -> auto& { return r.graphs; }));
  options.push_back(integer_option(
      {"run.seed", "of weights, mixing and packing"}, from_0,
      [](auto& r) -> auto& { return r.seed; }));
  options.push_back(real_option(
      {"run.init_scale", "factor on the standard deviations of the initial weights"}, positive,
      [](auto& r) -> auto& { return r.init_scale; }));
  options.push_back(integer_option(
      {"run.micro_batch",
       "most sequences of a forward pass; fewer where a replica's share is no multiple"},
      from_1, [](auto& r) -> auto& { return r.micro_batch; }));
  options.push_back(integer_option(
      {"run.validate_every", "steps between validations; 0: only where a stage begins and ends"},
      from_0, [](auto& r) -> auto& { return r.validate_every; }));
  options.push_back(integer_option(
      {"run.validation_samples", "held-out samples of each category; 0: all"}, from_0,
      [](auto& r) -> auto& { return r.validation_samples; }));
  options.push_back(integer_option(
      {"run.checkpoint_every", "steps between checkpoints; 0: only where a stage ends"}, from_0,
      [](auto& r) -> auto& { return r.checkpoint_every; }));
  options.push_back(integer_option(
      {"run.keep_checkpoints", "newest checkpoints kept of a stage on its way"}, from_1,
      [](auto& r) -> auto& { return r.keep_checkpoints; }));
  options.push_back(integer_option(
      {"run.hang_timeout",
       "seconds: a rank that gives no sign of life, or keeps others waiting, for so long ends the "
       "job"},
      from_1, [](auto& r) -> auto& { return r.hang_timeout; }));
}

void add_vision(std::vector<RunOption>& options) {
  const auto dimension = [&](const char* name, const char* help, IntegerBounds bounds, auto field) {
    options.push_back(integer_option({name, help}, bounds, field));
  };
  dimension(
      "vision.layers", "transformer blocks; 0: a text-only model", from_0,
      [](auto& r) -> auto& { return r.model.vision.layers; });
  dimension(
      "vision.width", "channels", from_0, [](auto& r) -> auto& { return r.model.vision.width; });
  dimension(
      "vision.heads", "attention heads", from_0,
      [](auto& r) -> auto& { return r.model.vision.heads; });
  dimension(
      "vision.mlp_width", "channels inside the MLP", from_0,
      [](auto& r) -> auto& { return r.model.vision.mlp_width; });
  dimension(
      "vision.patch", "pixels a side of a patch", from_1,
      [](auto& r) -> auto& { return r.model.vision.patch; });
  options.push_back(choice_option(
      {"vision.features", "what the connector reads"}, feature_layers,
      [](auto& r) -> auto& { return r.model.vision.features; }));
  dimension(
      "connector.hidden", "channels", from_0,
      [](auto& r) -> auto& { return r.model.connector.hidden; });
  dimension(
      "connector.depth", "bottlenecks on either side of the pooling", from_1,
      [](auto& r) -> auto& { return r.model.connector.depth; });
  dimension(
      "connector.out_side", "visual tokens a side of a tile", from_1,
      [](auto& r) -> auto& { return r.model.connector.out_side; });
}

void add_decoder(std::vector<RunOption>& options) {
  const auto dimension = [&](const char* name, const char* help, IntegerBounds bounds, auto field) {
    options.push_back(integer_option({name, help}, bounds, field));
  };
  dimension(
      "decoder.layers", "transformer blocks", from_0,
      [](auto& r) -> auto& { return r.model.decoder.layers; });
  dimension(
      "decoder.hidden", "channels", from_0,
      [](auto& r) -> auto& { return r.model.decoder.hidden; });
  dimension(
      "decoder.ffn", "channels inside a feed-forward, of an expert too", from_0,
      [](auto& r) -> auto& { return r.model.decoder.ffn; });
  dimension(
      "decoder.heads", "query heads", from_0,
      [](auto& r) -> auto& { return r.model.decoder.heads; });
  dimension(
      "decoder.kv_heads", "key and value heads", from_0,
      [](auto& r) -> auto& { return r.model.decoder.kv_heads; });
  dimension(
      "decoder.head_dim", "channels of a head", from_0,
      [](auto& r) -> auto& { return r.model.decoder.head_dim; });
  dimension(
      "decoder.vocabulary", "tokens; 0: as many as the training set's tokenizer has", from_0,
      [](auto& r) -> auto& { return r.model.decoder.vocabulary; });
  options.push_back(real_option(
      {"decoder.rope_theta", "base of the rotary angles"}, positive,
      [](auto& r) -> auto& { return r.model.decoder.rope_theta; }));
  options.push_back(choice_option(
      {"decoder.recompute", "what backward computes again to save memory, vision included"},
      recomputes, [](auto& r) -> auto& { return r.model.recompute; }));
}

void add_moe(std::vector<RunOption>& options) {
  options.push_back(integer_option(
      {"moe.experts", "of a sparse layer; 0: a dense model"}, from_0,
      [](auto& r) -> auto& { return r.model.decoder.moe.experts; }));
  options.push_back(integer_option(
      {"moe.every", "the last layer of each group of so many is sparse"}, from_1,
      [](auto& r) -> auto& { return r.model.decoder.moe.every; }));
  options.push_back(integer_option(
      {"moe.top_k", "experts of a token"}, {.least = 1, .most = max_top_k},
      [](auto& r) -> auto& { return r.model.decoder.moe.top_k; }));
  options.push_back(real_option(
      {"moe.capacity_factor", "room of an expert, of the mean load; 0: dropless"}, not_negative,
      [](auto& r) -> auto& { return r.model.decoder.moe.capacity_factor; }));
  options.push_back(choice_option(
      {"moe.balance_counts", "choices that the load-balance loss counts"}, balance_counts,
      [](auto& r) -> auto& { return r.model.decoder.moe.balance_counts; }));
  options.push_back(real_option(
      {"moe.balance_weight", "of the load-balance loss"}, not_negative,
      [](auto& r) -> auto& { return r.model.decoder.moe.balance_weight; }));
  options.push_back(real_option(
      {"moe.z_weight", "of the router z-loss"}, not_negative,
      [](auto& r) -> auto& { return r.model.decoder.moe.z_weight; }));
}

// The options of one stage: `field` gets its StageConfig.
class StageOptions {
 public:
  StageOptions(std::vector<RunOption>& options, int stage)
      : options_(options), index_(static_cast<std::size_t>(stage - 1)) {}

  template <class Field>
  void integer(const char* key, const char* help, IntegerBounds bounds, Field field) {
    options_.push_back(integer_option(text(key, help), bounds, of_stage(field)));
  }
  template <class Field>
  void real(const char* key, const char* help, RealBounds bounds, Field field) {
    options_.push_back(real_option(text(key, help), bounds, of_stage(field)));
  }
  template <class Names, class Field>
  void choice(const char* key, const char* help, const Names& names, Field field) {
    options_.push_back(choice_option(text(key, help), names, of_stage(field)));
  }
  void add(RunOption option) { options_.push_back(std::move(option)); }
  template <class Field>
  void name(const char* key, const char* help, const char* values, Field field) {
    options_.push_back(text_option(text(key, help), values, of_stage(field)));
  }

 private:
  OptionText text(const char* key, const char* help) const {
    return {fmt::format("stage{}.{}", index_ + 1, key), help};
  }
  template <class Field>
  auto of_stage(Field field) const {
    return [ field, index = index_ ](auto& run) -> auto& {
      return field(run.stages[index]);
    };
  }

  std::vector<RunOption>& options_;
  std::size_t index_;
};

// A number, or whatever the stage's optimizer usually has.
RunOption weight_decay_option(int stage) {
  constexpr std::string_view usual = "usual";
  const auto index = static_cast<std::size_t>(stage - 1);
  return {.name = fmt::format("stage{}.weight_decay", stage),
          .help = "of matrices, times the learning rate; usual: 0.1 for adamw, none for adafactor",
          .values = "usual, or a number of at least 0",
          .read =
              [=](RunConfig& run, std::string_view text) {
                std::optional<double>& decay = run.stages[index].optimizer.weight_decay;
                decay.reset();
                if (text == usual) return true;
                double number = 0;
                if (!read_number(text, number) || !std::isfinite(number) || number < 0)
                  return false;
                decay = number;
                return true;
              },
          .print =
              [=](const RunConfig& run) {
                const std::optional<double> decay = run.stages[index].optimizer.weight_decay;
                return decay ? fmt::format("{}", *decay) : std::string(usual);
              }};
}

void add_stage(std::vector<RunOption>& all, int stage) {
  StageOptions options(all, stage);
  options.integer(
      "steps", "optimizer steps; 0: the run has no such stage", from_0,
      [](auto& s) -> auto& { return s.steps; });
  options.integer(
      "global_batch", "sequences of a step, over all ranks", from_0,
      [](auto& s) -> auto& { return s.global_batch; });
  options.integer(
      "sequence_length", "rows of a packed sequence, visual tokens included", from_0,
      [](auto& s) -> auto& { return s.sequence_length; });
  options.integer(
      "side", "pixels a side of a tile", from_0, [](auto& s) -> auto& { return s.side; });
  options.integer(
      "max_pictures", "of a packed sequence", from_1,
      [](auto& s) -> auto& { return s.max_pictures; });
  options.choice(
      "tiling", "how a picture is split", tiling_modes,
      [](auto& s) -> auto& { return s.tiling.mode; });
  options.integer(
      "min_tiles", "dynamic tiling: fewest tiles, the overview not counted", from_1,
      [](auto& s) -> auto& { return s.tiling.min_tiles; });
  options.integer(
      "max_tiles", "dynamic tiling: most tiles", {.least = 1, .most = 64},
      [](auto& s) -> auto& { return s.tiling.max_tiles; });
  options.choice(
      "grid_reading", "dynamic tiling: how a picture is scaled to a grid", grid_readings,
      [](auto& s) -> auto& { return s.tiling.reading; });
  options.integer(
      "split_below_pictures", "samples of so many pictures keep them whole", from_0,
      [](auto& s) -> auto& { return s.tiling.split_below_pictures; });
  options.choice(
      "marks", "position marks before tiles", mark_styles,
      [](auto& s) -> auto& { return s.marks; });
  options.name(
      "mixture", "how categories are mixed", "stage1 | stage2 | base | single_image | all | equal",
      [](auto& s) -> auto& { return s.mixture; });
  options.choice(
      "targets", "tokens that are learnt", target_policies,
      [](auto& s) -> auto& { return s.targets; });
  options.choice(
      "optimizer", "the rule of the update", optimizers,
      [](auto& s) -> auto& { return s.optimizer.kind; });
  options.real(
      "peak_lr", "learning rate after warm-up; 0: the law of MM1 at the dense backbone's size",
      not_negative, [](auto& s) -> auto& { return s.peak_lr; });
  options.integer(
      "warmup", "steps of linear warm-up", from_0, [](auto& s) -> auto& { return s.warmup; });
  options.real(
      "final_lr_fraction", "where the cosine ends, of the peak", fraction,
      [](auto& s) -> auto& { return s.final_lr_fraction; });
  options.real(
      "beta1", "adamw: decay of the mean", fraction,
      [](auto& s) -> auto& { return s.optimizer.beta1; });
  options.real(
      "beta2", "adamw: decay of the mean square", fraction,
      [](auto& s) -> auto& { return s.optimizer.beta2; });
  options.real(
      "epsilon", "adamw: added to the root mean square", positive,
      [](auto& s) -> auto& { return s.optimizer.epsilon; });
  options.add(weight_decay_option(stage));
  options.real(
      "clip_norm", "adamw: largest global gradient norm; 0: none", not_negative,
      [](auto& s) -> auto& { return s.optimizer.clip_norm; });
  options.real(
      "block_clip", "adafactor: largest rms of a block's update", positive,
      [](auto& s) -> auto& { return s.optimizer.block_clip; });
  options.integer(
      "factor_threshold", "adafactor: both sides of a factored matrix have at least this", from_1,
      [](auto& s) -> auto& { return s.optimizer.factor_threshold; });
}

std::vector<RunOption> make_options() {
  std::vector<RunOption> options;
  add_run(options);
  add_layout(options);
  add_vision(options);
  add_decoder(options);
  add_moe(options);
  for (int stage = 1; stage <= stage_count; ++stage) add_stage(options, stage);
  return options;
}

}  // namespace

std::span<const RunOption> run_options() {
  static const std::vector<RunOption> options = make_options();
  return options;
}

const RunOption* find_run_option(std::string_view name) {
  const std::span<const RunOption> options = run_options();
  const auto found = std::find_if(options.begin(), options.end(),
                                  [&](const RunOption& option) { return option.name == name; });
  return found == options.end() ? nullptr : &*found;
}

RunConfig default_run() {
  RunConfig run;
  for (int stage = 1; stage <= stage_count; ++stage) run.stages.push_back({.number = stage});
  return run;
}

}  // namespace orchard
