#include "train/trainer.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>

#include "data/atomic_file.h"
#include "models/fixed_messages.h"
#include "train/checkpoint.h"
#include "train/checkpoint_folder.h"
#include "train/layout_facts.h"
#include "train/link_timer.h"
#include "train/model_json.h"
#include "train/pipeline_picture.h"
#include "train/pipeline_pictures.h"
#include "train/schedule.h"
#include "train/stage_cut.h"
#include "train/stage_data.h"
#include "train/stage_model.h"

namespace orchard {
namespace {

using Clock = std::chrono::steady_clock;

// Messages to experts with room for more than so many times what is kept are told of.
constexpr double most_room_untold = 1.25;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The observer on rank 0, silence elsewhere.
class RankObserver {
 public:
  RankObserver(Observer& observer, const Communicator& ranks)
      : observer_(ranks.rank() == 0 ? &observer : nullptr) {}
  void step(const StepEvent& event) const {
    if (observer_) observer_->on_step(event);
  }
  void validation(const ValidationEvent& event) const {
    if (observer_) observer_->on_validation(event);
  }
  void message(const std::string& text) const {
    if (observer_) observer_->on_message(text);
  }
  ProgressHook progress(const char* doing, const char* units) const {
    if (!observer_) return {};
    return [doing, units, observer = observer_](std::int64_t done, std::int64_t total) {
      observer->on_progress({.doing = doing, .units = units, .done = done, .total = total});
    };
  }

 private:
  Observer* observer_;
};

void check_tokenizer(const RunConfig& run, const std::filesystem::path& checkpoint,
                     const CheckpointInfo& info, const std::string& tokenizer_hash) {
  require(info.tokenizer_hash == tokenizer_hash,
          "{} was trained with another tokenizer ({}) than the training set {} holds ({}): use the "
          "training set it was trained on, or one packed with its tokenizer",
          checkpoint.string(), info.tokenizer_hash, run.training_set.string(), tokenizer_hash);
}

// Everything that the times of links depend on, but for the machine: it and its nodes may change.
std::string setting_of(const RunConfig& run, const ModelConfig& model, const MicroBatch& batch) {
  Layout layout = run.layout;
  layout.pipeline = 1;
  return fmt::format(
      "{}, {} rows, moe-chunks {}, {} rows to experts, {}, {}; {} x {} rows, {} targets, {} tiles; "
      "{}",
      layout.to_string(), run.sequence_parallel == SequenceParallel::yes ? "shared" : "same",
      run.experts.chunks, run.experts.messages == ExpertMessages::fixed ? "fixed" : "counted",
      name_of(run.dtype), model.recompute == Recompute::blocks ? "recomputed" : "kept",
      batch.sequences, batch.length, batch.target_count, batch.tiles, model_json(model));
}

StageCut cut_of(const RunConfig& run, const StageConfig& stage, const ModelConfig& model,
                StageData& data, Device& device, Communicator& world) {
  if (run.layout.pipeline == 1) return {};
  const MicroBatch batch = run.pipeline.is_measured() ? data.typical_batch() : MicroBatch();
  const LinkSetting links{.layout = run.layout,
                          .sequence_parallel = run.sequence_parallel,
                          .experts = run.experts,
                          .dtype = run.dtype};
  return cut_stage({.run = run,
                    .stage = stage,
                    .model = model,
                    .work = data.first_workload(),
                    .setting = setting_of(run, model, batch),
                    .time = [&] { return time_links(device, world, model, links, batch); }},
                   world);
}

class StageTrainer {
 public:
  StageTrainer(const RunConfig& run, const StageConfig& stage, const TrainingSet& set,
               Device& device, Communicator& world, const RankObserver& observer)
      : run_(run),
        stage_(stage),
        set_(set),
        observer_(observer),
        checkpoints_(run.run_folder),
        model_config_(stage_model(run, stage, set)),
        data_(set, run, stage, micro_batch_of(run, stage, world.size())),
        cut_(cut_of(run, stage, model_config_, data_, device, world)),
        ranks_(world, run.layout, run.sequence_parallel, cut_.stages),
        stream_(device.make_stream()),
        store_(ranks_.place()),
        model_(store_, model_config_) {
    store_.allocate(device, *stream_, run.dtype, ParameterUse::training_on_shards);
    shards_.emplace(device, *stream_, ranks_, store_);
    model_.prepare(device, *stream_);
    optimizer_.emplace(device, *stream_, store_, stage.optimizer, &*shards_);
    runner_.emplace(device, *stream_, ranks_, store_, model_, &*shards_,
                    StepOptions{.experts = run.experts, .graphs = run.graphs});
    if (ExpertDispatcher* const dispatcher = runner_->dispatcher()) {
      dispatcher->on_growth([this](const std::string& text) {
        fmt::print(stderr, "{}: {}\n", ranks_.mesh().name(ranks_.rank()), text);
      });
    }
    const double law =
        learning_rate_law(static_cast<double>(dense_backbone_parameters(model_config_.decoder)));
    schedule_ = {.peak = stage.peak_lr > 0 ? stage.peak_lr : law,
                 .warmup = stage.warmup,
                 .steps = stage.steps,
                 .final_fraction = stage.final_lr_fraction};
  }

  void initialise() {
    store_.initialise(*stream_, run_.seed, run_.init_scale);
    observer_.message(fmt::format("stage {}: {:.2f} M parameters from seed {}", stage_.number,
                                  static_cast<double>(store_.count()) / 1e6, run_.seed));
  }

  void start_from(const std::filesystem::path& weights) {
    check_tokenizer(run_, weights, read_checkpoint_info(weights), set_.tokenizer().hash());
    load_parameters(weights, *stream_, store_, PositionTables::resized,
                    observer_.progress("reading weights", "tensors"));
    observer_.message(fmt::format("stage {}: weights from {}", stage_.number, weights.string()));
  }

  void resume(const std::filesystem::path& checkpoint, const CheckpointInfo& info) {
    load_parameters(checkpoint, *stream_, store_, PositionTables::exact,
                    observer_.progress("reading weights", "tensors"));
    load_optimizer(checkpoint, *stream_, *optimizer_);
    done_ = info.step;
    observer_.message(fmt::format("stage {}: resumed after step {} from {}", stage_.number, done_,
                                  checkpoint.string()));
  }

  // Trains up to `budget` further steps (none: to the end). Returns the steps taken.
  std::int64_t run(std::optional<std::int64_t> budget) {
    observer_.message(data_.report());
    observer_.message(fmt::format("stage {}: {} micro-batches of {} sequences a replica and step",
                                  stage_.number, micro_batches(), data_.micro_batch()));
    tell_pipeline();
    tell_graphs();
    tell_messages();
    if (done_ == 0) validate_and_report();
    const std::int64_t first = done_,
                       last = budget ? std::min(stage_.steps, done_ + *budget) : stage_.steps;
    const auto loader = data_.make_loader({.first_step = done_ + 1,
                                           .rank = replicas().rank(),
                                           .ranks = replicas().size(),
                                           .pictures = picture_content(ranks_),
                                           .on_bad = [this](const BadSample& bad) {
                                             ++bad_samples_;
                                             tell_bad(bad);
                                           }});
    while (done_ < last) {
      train_one(*loader);
      const bool at_end = done_ == stage_.steps;
      if (at_end || (run_.validate_every > 0 && done_ % run_.validate_every == 0))
        validate_and_report();
      if (at_end || done_ == last ||
          (run_.checkpoint_every > 0 && done_ % run_.checkpoint_every == 0))
        save(at_end);
    }
    return done_ - first;
  }

 private:
  void tell_pipeline() {
    const PipelineStages& stages = ranks_.stages();
    if (stages.ranks() == 1) return;
    observer_.message(
        fmt::format("stage {}: pipeline {}, {}", stage_.number, stages.to_string(), cut_.origin));
    if (ranks_.rank() != 0) return;
    write_file(pipeline_picture_path(run_.run_folder, stage_.number),
               pipeline_picture({.stages = stages,
                                 .costs = cut_.costs,
                                 .halves = cut_.halves,
                                 .costs_are = cut_.costs_are,
                                 .micro_batches = static_cast<int>(micro_batches())}));
  }

  void tell_graphs() {
    if (run_.graphs == Graphs::no || ranks_[MeshGroup::world].size() == 1) return;
    observer_.message(fmt::format(
        "stage {}: graphs replay the micro-batches of a step but for the last, whose gradients are "
        "sent while it runs{}",
        stage_.number,
        micro_batches() == 1 ? ": here there is no other, so none is replayed" : ""));
  }

  void tell_messages() {
    const ExpertDispatcher* const dispatcher = runner_->dispatcher();
    const float factor = model_config_.decoder.moe.capacity_factor;
    if (!dispatcher || dispatcher->placement().size() == 1 || factor == 0 ||
        dispatcher->options().messages == ExpertMessages::counted)
      return;
    const CapacityRule rule{.factor = factor,
                            .experts = model_config_.decoder.moe.experts,
                            .length = stage_.sequence_length};
    const int shares = ranks_[MeshGroup::tensor].size(), chunks = dispatcher->options().chunks;
    const double room =
        fixed_messages(rule, data_.micro_batch() * rule.length, shares, chunks).room;
    if (room <= most_room_untold) return;
    observer_.message(
        fmt::format("stage {}: messages to experts have room for {:.1f} times what a micro-batch "
                    "can keep, which "
                    "experts work on: its {} sequences are cut into {} parts. More sequences, "
                    "fewer tensor ranks "
                    "or layout.moe_chunks avoid that, or layout.moe_messages = counted, for which "
                    "the host waits",
                    stage_.number, room, data_.micro_batch(), shares * chunks));
  }

  // Of a replica's step.
  std::int64_t micro_batches() const {
    return stage_.global_batch / data_.micro_batch() / replicas().size();
  }

  // The ranks that hold what this one holds and see other samples.
  Communicator& replicas() const { return ranks_[MeshGroup::data]; }

  void train_one(PrefetchingLoader& loader) {
    const auto start = Clock::now();
    const std::int64_t step = done_ + 1;
    const StepPlan plan = data_.step_plan(step);
    const auto mine = plan.of_rank(replicas().rank(), replicas().size());
    micro_batches_.clear();
    for (std::size_t i = 0; i < mine.size(); ++i) {
      auto batch = loader.next();
      require(batch.has_value(), "the loader ended before step {}", step);
      micro_batches_.push_back(std::move(*batch));
    }
    share_bad_documents(ranks_, micro_batches_);
    const double data_seconds = seconds_since(start);
    // The plan deals every micro-batch as many sequences, and a stage's have one length.
    const StepTotals totals{.targets = plan.targets,
                            .real_rows = plan.real_rows,
                            .sequences = stage_.global_batch,
                            .sizes = MicroBatchSizes::alike};
    StepEvent event{.stage = stage_.number,
                    .step = step,
                    .steps = stage_.steps,
                    .learning_rate = schedule_.at(step),
                    .tokens = plan.real_rows,
                    .targets = plan.targets,
                    .tiles = plan.tiles,
                    .data_seconds = data_seconds};
    try {
      event.report = runner_->train(micro_batches_, totals, *optimizer_, event.learning_rate, step);
    } catch (const Error& error) {
      fail("stage {} step {}: {}", stage_.number, step, error.what());
    }
    done_ = step;
    event.step_seconds = seconds_since(start);
    event.bad_samples = bad_samples_;
    observer_.step(event);
  }

  void validate_and_report() {
    const auto start = Clock::now();
    ValidationEvent event{.stage = stage_.number, .step = done_, .steps = stage_.steps};
    // Where a stage begins, what counts is the loss that it has to improve on.
    const Swap swap = done_ == 0 ? Swap::skip : Swap::compare;
    event.report = validate(*runner_, data_, set_.index(), replicas(), swap, tell_bad,
                            observer_.progress("validating", "micro-batches"));
    event.seconds = seconds_since(start);
    observer_.validation(event);
    // The report is that of all ranks. What follows would be a checkpoint without worth.
    require(
        std::isfinite(event.report.loss),
        "stage {} step {}: the held-out loss is {}: lower the learning rate, or look for bad data",
        stage_.number, done_, event.report.loss);
  }

  void save(bool at_end) {
    // Written by one rank; the others wait, so that no rank runs ahead of a failed write.
    const std::filesystem::path path =
        at_end ? checkpoints_.final_of(stage_.number) : checkpoints_.at_step(stage_.number, done_);
    Communicator& world = ranks_[MeshGroup::world];
    const bool writes = world.rank() == 0;
    if (writes) std::filesystem::create_directories(checkpoints_.folder());
    save_checkpoint(path,
                    {.stage = stage_.number,
                     .step = done_,
                     .sequences = done_ * stage_.global_batch,
                     .seed = run_.seed,
                     .stage_finished = at_end,
                     .tokenizer_hash = set_.tokenizer().hash(),
                     .model = model_json(model_config_)},
                    *stream_, world, store_, *optimizer_,
                    observer_.progress("writing a checkpoint", "tensors"));
    if (writes) checkpoints_.prune(stage_.number, at_end ? 0 : run_.keep_checkpoints);
    world.barrier();
    observer_.message(
        fmt::format("stage {} step {}: wrote {}", stage_.number, done_, path.string()));
  }

  const RunConfig& run_;
  const StageConfig& stage_;
  const TrainingSet& set_;
  const RankObserver& observer_;
  CheckpointFolder checkpoints_;
  ModelConfig model_config_;
  StageData data_;
  StageCut cut_;
  ParallelContext ranks_;
  std::unique_ptr<Stream> stream_;
  ParameterStore store_;
  MultimodalModel model_;
  std::optional<FlatShards> shards_;
  std::optional<Optimizer> optimizer_;
  std::optional<StepRunner> runner_;
  Schedule schedule_;
  std::vector<MicroBatch> micro_batches_;
  std::int64_t done_ = 0;                      // steps of the stage
  std::atomic<std::int64_t> bad_samples_ = 0;  // counted on the loader's thread
};

void check_run(const RunConfig& run, const TrainingSet& set, const Communicator& ranks) {
  if (run.stages.empty()) return;
  require_possible(ranks.size(), run.layout,
                   layout_facts(run, stage_model(run, run.stages.front(), set)));
}

}  // namespace

void check_resumable(const RunConfig& run, const std::string& tokenizer_hash) {
  if (run.layout.pipeline > 1 && run.pipeline.is_measured()) {
    for (const StageConfig& stage : run.stages)
      if (const auto times = link_times_path(run.run_folder, stage.number);
          std::filesystem::exists(times))
        read_link_times(times);
  }
  const auto latest = CheckpointFolder(run.run_folder).latest();
  if (!latest) return;
  const std::string name = latest->string();
  CheckpointInfo info;
  try {
    info = read_checkpoint_info(*latest);
  } catch (const Error& error) {
    fail("{}; remove it to resume from the checkpoint before it", error.what());
  }
  check_tokenizer(run, *latest, info, tokenizer_hash);
  const std::string difference = model_difference(model_from_json(info.model), run.model);
  require(difference.empty(), "{} holds another model than this run's: {}", name, difference);
  const auto stage = std::find_if(run.stages.begin(), run.stages.end(),
                                  [&](const StageConfig& s) { return s.number == info.stage; });
  if (info.stage_finished || stage == run.stages.end()) return;
  require(info.seed == run.seed,
          "{} was trained with seed {}, this run has seed {}: its data order would differ", name,
          info.seed, run.seed);
  require(
      info.sequences == info.step * stage->global_batch,
      "{} stands after {} sequences in {} steps; with a global batch of {} it cannot be resumed "
      "exactly",
      name, info.sequences, info.step, stage->global_batch);
  require(info.step < stage->steps,
          "{} stands after {} steps, and stage{}.steps = {} leaves none to finish the stage with: "
          "raise it",
          name, info.step, info.stage, stage->steps);
}

void train(const RunConfig& run, const TrainOptions& options, Device& device, Communicator& ranks,
           Observer& observer) {
  const TrainingSet set = TrainingSet::open(run.training_set);
  check_run(run, set, ranks);
  const RankObserver quiet(observer, ranks);
  if (ranks.size() > 1) {
    quiet.message(fmt::format("{} ranks: {} (dp {}, edp {})", ranks.size(), run.layout.to_string(),
                              run.layout.data(ranks.size()), run.layout.expert_data(ranks.size())));
  }
  const CheckpointFolder checkpoints(run.run_folder);
  const auto latest = checkpoints.latest();
  require(options.resume == Resume::from_latest || !latest,
          "{} already holds checkpoints: continue it with --resume, or choose another run folder",
          run.run_folder.string());
  check_resumable(run, set.tokenizer().hash());
  std::optional<CheckpointInfo> reached;
  if (latest) reached = read_checkpoint_info(*latest);
  ranks.barrier();  // nobody writes a checkpoint before all have looked

  std::optional<std::int64_t> budget;
  if (options.stop_after_steps > 0) budget = options.stop_after_steps;
  std::filesystem::path weights = options.initial_weights;
  bool trained = false;
  for (const StageConfig& stage : run.stages) {
    const std::filesystem::path finished = checkpoints.final_of(stage.number);
    const bool skipped = options.only_stage != 0 && stage.number != options.only_stage;
    const bool done = reached && (reached->stage > stage.number ||
                                  (reached->stage == stage.number && reached->stage_finished));
    if (skipped || done) {
      if (std::filesystem::exists(finished)) weights = finished;
      continue;
    }
    StageTrainer trainer(run, stage, set, device, ranks, quiet);
    if (reached && reached->stage == stage.number) {
      trainer.resume(*latest, *reached);
    } else if (!weights.empty()) {
      trainer.start_from(weights);
    } else {
      trainer.initialise();
    }
    trained = true;
    const std::int64_t taken = trainer.run(budget);
    if (budget && (*budget -= taken) <= 0) return;
    weights = finished;
  }
  if (!trained) quiet.message("every stage is finished: nothing is left to train");
}

}  // namespace orchard
