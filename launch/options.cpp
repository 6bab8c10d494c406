#include "launch/options.h"

#include <algorithm>

#include "launch/suggest.h"
#include "launch/validate.h"

namespace orchard {
namespace {

std::vector<std::string> option_names() {
  std::vector<std::string> names;
  for (const RunOption& option : run_options()) names.push_back(option.name);
  return names;
}

std::size_t index_of(std::string_view name) {
  const RunOption* option = find_run_option(name);
  require(option != nullptr, "{} is not an option of a run", name);
  return static_cast<std::size_t>(option - run_options().data());
}

// 0 for options that belong to no stage.
int stage_of(const RunOption& option) {
  constexpr std::string_view prefix = "stage";
  return option.section().starts_with(prefix) ? option.section().back() - '0' : 0;
}

}  // namespace

ResolvedRun::ResolvedRun(const RunSources& sources)
    : run_(default_run()), origins_(run_options().size()) {
  if (!sources.recipe.empty()) {
    for (const Setting& setting : read_recipe(find_recipe(sources.recipe))) apply(setting);
  }
  for (const Setting& setting : sources.environment) apply(setting);
  for (const Setting& setting : sources.command_line) apply(setting);
  validate(*this, config());
}

void ResolvedRun::apply(const Setting& setting) {
  const RunOption* option = find_run_option(setting.name);
  require_configuration(option != nullptr, "{}: there is no option {}{}", setting.origin,
                        setting.name,
                        option == nullptr ? suggestion(setting.name, option_names()) : "");
  require_configuration(option->read(run_, setting.value), "{} = {} ({}): must be {}", setting.name,
                        setting.value, setting.origin, option->values);
  origins_[index_of(setting.name)] = setting.origin;
}

RunConfig ResolvedRun::config() const {
  RunConfig run = run_;
  std::erase_if(run.stages, [](const StageConfig& stage) { return stage.steps == 0; });
  if (!run.stages.empty()) run.model.vision.side = run.stages.front().side;
  for (StageConfig& stage : run.stages) {
    stage.tiling.side = stage.side;
    run.model.decoder.max_positions =
        std::max(run.model.decoder.max_positions, stage.sequence_length);
  }
  return run;
}

std::string ResolvedRun::describe(std::string_view name) const {
  const std::size_t i = index_of(name);
  return fmt::format("{} = {} ({})", name, run_options()[i].print(run_),
                     origins_[i].empty() ? "default" : origins_[i]);
}

std::string ResolvedRun::to_ini(Show show) const {
  std::string text;
  std::string_view section;
  for (std::size_t i = 0; i < run_options().size(); ++i) {
    const RunOption& option = run_options()[i];
    const int stage = stage_of(option);
    const bool absent = stage > 0 && run_.stages[static_cast<std::size_t>(stage - 1)].steps == 0;
    if (absent && option.key() != "steps") continue;
    if (option.section() != section) {
      text += fmt::format("{}[{}]\n", section.empty() ? "" : "\n", option.section());
      section = option.section();
    }
    std::string line = fmt::format("{} = {}", option.key(), option.print(run_));
    if (show == Show::origins) {
      line = fmt::format("{:<40} # {}", line, origins_[i].empty() ? "default" : origins_[i]);
    }
    text += line + "\n";
  }
  return text;
}

Setting parse_assignment(std::string_view text) {
  const std::size_t equals = text.find('=');
  require_configuration(equals != std::string_view::npos && equals > 0,
                        "--set {}: write section.key=value, like stage1.peak_lr=1e-3", text);
  return {std::string(text.substr(0, equals)), std::string(text.substr(equals + 1)),
          "command line"};
}

RunConfig load_recipe(const std::string& name) {
  return ResolvedRun({.recipe = name}).config();
}

}  // namespace orchard
