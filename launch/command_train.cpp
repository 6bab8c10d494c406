#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "data/atomic_file.h"
#include "data/training_set.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/job.h"
#include "launch/options.h"
#include "launch/run_summary.h"
#include "launch/validate.h"
#include "train/checkpoint_folder.h"
#include "train/trainer.h"

namespace orchard {
namespace {

namespace fs = std::filesystem;

constexpr const char* usage =
    "usage: orchard train --recipe NAME --training-set FOLDER --run-folder FOLDER [options]\n\n"
    "Trains a model through the stages of a recipe. Under mpirun the ranks share the work.\n"
    "launch/run.sh starts ranks with the right binding and number of threads.";

constexpr const char* resolved_name = "resolved.ini";

// Options of [run] can be given directly: --micro-batch for run.micro_batch.
bool has_flag(const RunOption& option) {
  return option.section() == "run";
}

std::string flag_of(const RunOption& option) {
  std::string flag(option.key());
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

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

class PlainObserver final : public Observer {
 public:
  void on_step(const StepEvent& event) override {
    fmt::print("stage {} step {}/{} loss {:.4f} lr {:.3g} {:.0f} tokens/s\n", event.stage,
               event.step, event.steps, event.report.losses.loss, event.learning_rate,
               static_cast<double>(event.tokens) / event.step_seconds);
  }
  void on_validation(const ValidationEvent& event) override {
    fmt::print("stage {} step {}/{} held-out loss {:.4f}, swapped pictures +{:.4f} (z {:.1f})\n",
               event.stage, event.step, event.steps, event.report.loss,
               event.report.swap.difference, event.report.swap.z());
  }
  void on_message(const std::string& text) override { fmt::print("{}\n", text); }
};

struct Request {
  std::optional<ResolvedRun> run;
  TrainOptions options;
  bool dry_run = false;
};

// The recipe that a run folder to be resumed was trained with.
std::string recipe_of(const RunSources& sources) {
  std::string folder;
  for (const auto* settings : {&sources.environment, &sources.command_line}) {
    for (const Setting& setting : *settings) {
      if (setting.name == "run.run_folder") folder = setting.value;
    }
  }
  const fs::path resolved = fs::path(folder) / resolved_name;
  require_configuration(!folder.empty() && fs::exists(resolved),
                        "--recipe is missing; recipes are {} and paths to .ini files",
                        fmt::join(recipe_names(), ", "));
  return fs::absolute(resolved).string();
}

// Empty when only help was wanted.
std::optional<Request> parse(Arguments arguments) {
  using program_options::value;
  Request request;
  bool resume = false;
  std::vector<std::string> option_names;
  CommandLine line(usage);
  line.options().add_options()                                                         //
      ("recipe", value<std::string>(), "name of a recipe, or a path to an .ini file")  //
      ("set", value<std::vector<std::string>>(),
       "section.key=value: overrides the recipe; may be repeated")  //
      ("stage", value(&request.options.only_stage),
       "train this stage only; it starts from the weights of the stage before")  //
      ("resume", program_options::bool_switch(&resume),
       "continue after the newest checkpoint of the run folder, by its resolved.ini where no "
       "recipe is named")                                                                     //
      ("init", value<std::string>(), "checkpoint whose weights the first stage starts from")  //
      ("stop-after", value(&request.options.stop_after_steps),
       "end after so many steps, with a checkpoint to resume from")  //
      ("dry-run", program_options::bool_switch(&request.dry_run),
       "check everything, print each option with its origin, and end");
  for (const RunOption& option : run_options()) {
    option_names.push_back(option.name);
    if (!has_flag(option)) continue;
    line.options().add_options()(flag_of(option).c_str(), value<std::string>(),
                                 option.help.c_str());
  }
  line.set_footer(recipe_options_text());
  if (line.parse(arguments, option_names) == CommandLine::Outcome::helped) return {};

  RunSources sources{.recipe = line.text("recipe"), .environment = environment_settings()};
  for (const std::string& text : line.list("set")) {
    sources.command_line.push_back(parse_assignment(text));
  }
  for (const RunOption& option : run_options()) {
    if (!has_flag(option) || !line.has(flag_of(option))) continue;
    sources.command_line.push_back(
        {option.name, line.text(flag_of(option)), "--" + flag_of(option)});
  }
  if (resume) request.options.resume = Resume::from_latest;
  if (resume && sources.recipe.empty()) sources.recipe = recipe_of(sources);
  require_configuration(!sources.recipe.empty(),
                        "--recipe is missing; recipes are {} and paths to .ini files",
                        fmt::join(recipe_names(), ", "));
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
      write_file(run.run_folder / resolved_name, request->run->to_ini(ResolvedRun::Show::origins));
    });
    const std::unique_ptr<Device> device = make_cpu_device();
    PlainObserver observer;
    train(run, request->options, *device, job.ranks(), observer);
    return 0;
  });
}

}  // namespace orchard
