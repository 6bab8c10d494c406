#include <fmt/ranges.h>

#include <algorithm>
#include <iostream>
#include <optional>

#include "data/atomic_file.h"
#include "data/training_set.h"
#include "launch/command.h"
#include "launch/job.h"
#include "launch/run_arguments.h"
#include "launch/run_summary.h"
#include "launch/validate.h"
#include "train/checkpoint_folder.h"
#include "train/console.h"
#include "train/metrics.h"
#include "train/observers.h"
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

// What needs the ranks or the disk to be known. Changes nothing.
void check(const Request& request, int ranks) {
  const ResolvedRun& resolved = *request.run;
  const RunConfig run = resolved.config();
  const TrainOptions& options = request.options;
  validate_ranks(resolved, ranks);
  const bool known = std::any_of(run.stages.begin(), run.stages.end(), [&](const StageConfig& s) {
    return s.number == options.only_stage;
  });
  require_configuration(options.only_stage == 0 || known, "--stage {}: the run has no such stage",
                        options.only_stage);
  require_configuration(options.stop_after_steps >= 0, "--stop-after {}: must not be negative",
                        options.stop_after_steps);
  require_configuration(options.initial_weights.empty() || fs::exists(options.initial_weights),
                        "--init {}: there is no such file", options.initial_weights.string());
  if (request.dry_run && run.training_set.empty()) return;
  require_configuration(!run.training_set.empty(),
                        "--training-set is missing: name a folder that orchard pack wrote");
  validate_vocabulary(resolved, TrainingSet::open(run.training_set).tokenizer().vocabulary());
  if (request.dry_run) return;
  require_configuration(!run.run_folder.empty(), "--run-folder is missing: name a new folder");
  require_configuration(
      options.resume == Resume::from_latest || CheckpointFolder(run.run_folder).empty(),
      "{} already holds checkpoints: continue with --resume, or name another "
      "--run-folder",
      run.run_folder.string());
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
    if (request->dry_run) {
      if (job.is_first()) {
        fmt::print("{}\n{}", request->run->to_ini(ResolvedRun::Show::origins),
                   run_summary(run, job.ranks().size()));
      }
      return 0;
    }
    job.together([&] {
      if (!job.is_first()) return;
      fs::create_directories(run.run_folder);
      write_file(run.run_folder / resolved_recipe_name,
                 request->run->to_ini(ResolvedRun::Show::origins));
    });
    Terminal terminal(std::cout, Terminal::kind_of_stdout(), Terminal::columns_of_stdout());
    Observers observers;
    job.together([&] {
      if (job.is_first()) add_observers(observers, run, request->options, terminal);
    });
    const std::unique_ptr<Device> device = make_cpu_device();
    train(run, request->options, *device, job.ranks(), observers);
    return 0;
  });
}

}  // namespace orchard
