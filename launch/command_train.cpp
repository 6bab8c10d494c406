#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <optional>

#include "data/atomic_file.h"
#include "data/training_set.h"
#include "launch/command.h"
#include "launch/device.h"
#include "launch/ini.h"
#include "launch/job.h"
#include "launch/run_arguments.h"
#include "launch/run_summary.h"
#include "launch/validate.h"
#include "launch/watch.h"
#include "parallel/mesh.h"
#include "train/checkpoint_folder.h"
#include "train/console.h"
#include "train/metrics.h"
#include "train/observers.h"
#include "train/run_lock.h"
#include "train/tensorboard.h"
#include "train/trainer.h"

namespace orchard {
namespace {

namespace fs = std::filesystem;

constexpr const char* usage =
    "usage: orchard train --recipe NAME --training-set FOLDER --run-folder FOLDER [options]\n\n"
    "Trains a model through the stages of a recipe. Under mpirun the ranks share the work.\n"
    "launch/run.sh starts ranks with the right binding and number of threads.";

// All options a recipe may set; those of the stages once.
std::string recipe_options_text() {
  const RunConfig defaults = default_run();
  std::string text = fmt::format(
      "\nRecipes: {}\n\nOptions of a recipe, for --set (ORCHARD_SECTION_KEY in the "
      "environment); for stage1 also stage2, stage3:\n",
      fmt::join(recipe_names(), ", "));
  for (const RunOption& option : run_options()) {
    if (option.section() == "stage2" || option.section() == "stage3") continue;
    text += fmt::format("  {:<30}{}\n{:32}{}; default {}\n", option.name, option.help, "",
                        option.values, option.print(defaults));
  }
  return text;
}

struct Request {
  std::optional<ResolvedRun> run;
  TrainOptions options;
  bool dry_run = false;
};

// The recipe that a run to be resumed was started with.
std::string recipe_of(const RunSources& sources) {
  const fs::path folder = given_value(sources, "run.run_folder");
  const fs::path resolved = folder / resolved_recipe_name;
  if (folder.empty() || !fs::exists(resolved)) fail_without_recipe();
  return fs::absolute(resolved).string();
}

// Empty when only help was wanted.
std::optional<Request> parse(Arguments arguments) {
  using program_options::bool_switch;
  Request request;
  bool resume = false;
  CommandLine line(usage);
  line.options().add_options()  //
      ("stage", program_options::value(&request.options.only_stage),
       "train this stage only; it starts from the weights of the stage before")  //
      ("resume", bool_switch(&resume),
       "continue after the newest checkpoint of the run folder; without --recipe by its "
       "resolved.ini")  //
      ("init", program_options::value<std::string>(),
       "checkpoint whose weights the first stage starts from")  //
      ("stop-after", program_options::value(&request.options.stop_after_steps),
       "end after so many steps, with a checkpoint to resume from")  //
      ("dry-run", bool_switch(&request.dry_run),
       "check everything, print each option with its origin, and end");
  add_run_arguments(line);
  line.set_footer(recipe_options_text());
  if (line.parse(arguments, run_option_names()) == CommandLine::Outcome::helped) return {};

  RunSources sources = run_sources(line);
  if (resume) request.options.resume = Resume::from_latest;
  if (sources.recipe.empty()) {
    if (!resume) fail_without_recipe();
    sources.recipe = recipe_of(sources);
  }
  request.options.initial_weights = line.text("init");
  request.run.emplace(sources);
  return request;
}

// A stage alone starts from what the stage before it left in the run folder.
void check_start_of_stage(const RunConfig& run, const TrainOptions& options) {
  const auto stage = std::find_if(run.stages.begin(), run.stages.end(), [&](const StageConfig& s) {
    return s.number == options.only_stage;
  });
  require_configuration(options.only_stage == 0 || stage != run.stages.end(),
                        "--stage {}: the run has no such stage", options.only_stage);
  if (options.only_stage == 0 || stage == run.stages.begin() || !options.initial_weights.empty()) {
    return;
  }
  const fs::path weights = CheckpointFolder(run.run_folder).final_of((stage - 1)->number);
  const bool begun = newest_checkpoint(run.run_folder).stage >= options.only_stage;
  require_configuration(begun || fs::exists(weights),
                        "--stage {0} starts from the weights of stage {1}, and there is no {2}: "
                        "train stage {1} first, or name weights with --init",
                        options.only_stage, (stage - 1)->number, weights.string());
}

// What needs the ranks or the disk to be known. Changes nothing.
void check(const Request& request, int ranks) {
  const ResolvedRun& resolved = *request.run;
  const RunConfig run = resolved.config();
  const TrainOptions& options = request.options;
  validate_ranks(resolved, ranks);
  require_configuration(options.stop_after_steps >= 0, "--stop-after {}: must not be negative",
                        options.stop_after_steps);
  require_configuration(options.initial_weights.empty() || fs::exists(options.initial_weights),
                        "--init {}: there is no such file", options.initial_weights.string());
  if (request.dry_run && run.training_set.empty()) return;
  require_configuration(!run.training_set.empty(),
                        "--training-set is missing: name a folder that orchard pack wrote");
  const TrainingSet set = TrainingSet::open(run.training_set);
  validate_vocabulary(resolved, set.tokenizer().vocabulary(), ranks);
  validate_pictures(resolved, set.index().pictures.size());
  if (request.dry_run) return;
  require_configuration(!run.run_folder.empty(), "--run-folder is missing: name a new folder");
  require_configuration(
      options.resume == Resume::from_latest || CheckpointFolder(run.run_folder).empty(),
      "{} already holds checkpoints: continue with --resume, or name another "
      "--run-folder",
      run.run_folder.string());
  check_resumable(run, set.tokenizer().hash());
  check_start_of_stage(run, options);
}

// "stage1.peak_lr = 1e-5, was 1e-3; ...": what a resumed run does otherwise than before.
std::string changes_since(const fs::path& resolved, const ResolvedRun& run) {
  std::map<std::string, std::string> before;
  for (IniEntry& entry : parse_ini(read_text(resolved), resolved.string())) {
    before[entry.name] = std::move(entry.value);
  }
  std::string text;
  for (const IniEntry& entry : parse_ini(run.to_ini(ResolvedRun::Show::values), "this run")) {
    const auto old = before.find(entry.name);
    if (old != before.end() && old->second == entry.value) continue;
    text += fmt::format("{}{} = {}, was {}", text.empty() ? "" : "; ", entry.name, entry.value,
                        old == before.end() ? "not set" : old->second);
  }
  return text;
}

void make_run_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  require(!error, "cannot make the run folder {}: {}", folder.string(), error.message());
}

void add_observers(Observers& observers, const RunConfig& run, const TrainOptions& options,
                   Terminal& terminal) {
  const bool resumes = options.resume == Resume::from_latest;
  const RunPosition start = resumes ? newest_checkpoint(run.run_folder) : RunPosition{};
  observers.add(std::make_unique<Console>(terminal));
  observers.add(std::make_unique<MetricsFile>(run.run_folder, start));
  observers.add(std::make_unique<TensorBoard>(run.run_folder));
}

}  // namespace

int command_train(Arguments arguments) {
  return run_job([&](Job& job) {
    std::optional<Request> request;
    job.together([&] {
      request = parse(arguments);
      if (request) check(*request, job.ranks().size());
    });
    if (!request) return 0;
    const RunConfig run = request->run->config();
    job.set_name(Mesh(job.ranks().size(), run.layout).name(job.ranks().rank()));
    if (request->dry_run) {
      if (job.is_first()) {
        fmt::print("{}\n{}", request->run->to_ini(ResolvedRun::Show::origins),
                   run_summary(run, job.ranks().size()));
      }
      return 0;
    }
    // Before anything is written: a run that finds no GPU leaves no trace.
    std::unique_ptr<Device> device;
    job.together([&] { device = open_device(run, rank_on_node(job.ranks())); });
    const DeviceLinks links = find_links(run, job, *device);
    std::optional<RunLock> lock;
    std::string changes;
    job.together([&] {
      if (!job.is_first()) return;
      make_run_folder(run.run_folder);
      lock.emplace(run.run_folder);
      const fs::path resolved = run.run_folder / resolved_recipe_name;
      if (request->options.resume == Resume::from_latest && fs::exists(resolved)) {
        changes = changes_since(resolved, *request->run);
      }
      write_file(resolved, request->run->to_ini(ResolvedRun::Show::origins));
    });
    const std::unique_ptr<Watchdog> watchdog = watch(job, run, run.run_folder / "rings");
    Terminal terminal(std::cout, Terminal::kind_of(STDOUT_FILENO),
                      Terminal::columns_of(STDOUT_FILENO));
    Observers observers;
    job.together([&] {
      if (job.is_first()) add_observers(observers, run, request->options, terminal);
    });
    if (!changes.empty()) observers.on_message("changed since the run began: " + changes);
    if (!links.detour.empty())
      observers.on_message("data of GPUs passes through host memory: " + links.detour);
    const DeviceRanks ranks = connect_devices(job.ranks(), *device, links);
    train(run, request->options, *device, ranks.of(job.ranks()), observers);
    return 0;
  });
}

}  // namespace orchard
