#include "launch/run_arguments.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace orchard {
namespace {

bool has_flag(const RunOption& option) {
  return option.section() == "run" || option.section() == "layout";
}

std::string flag_of(const RunOption& option) {
  std::string flag(option.key());
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

}  // namespace

void add_run_arguments(CommandLine& line) {
  using program_options::value;
  line.options().add_options()("recipe", value<std::string>(),
                               "name of a recipe, or a path to an .ini file")(
      "set", value<std::vector<std::string>>(),
      "section.key=value: overrides the recipe; may be repeated");
  for (const RunOption& option : run_options()) {
    if (!has_flag(option)) continue;
    line.options().add_options()(flag_of(option).c_str(), value<std::string>(),
                                 option.help.c_str());
  }
}

std::vector<std::string> run_option_names() {
  std::vector<std::string> names;
  for (const RunOption& option : run_options()) names.push_back(option.name);
  return names;
}

RunSources run_sources(const CommandLine& line) {
  RunSources sources{.recipe = line.text("recipe"), .environment = environment_settings()};
  for (const std::string& text : line.list("set")) {
    sources.command_line.push_back(parse_assignment(text));
  }
  for (const RunOption& option : run_options()) {
    if (!has_flag(option) || !line.has(flag_of(option))) continue;
    sources.command_line.push_back(
        {option.name, line.text(flag_of(option)), "--" + flag_of(option)});
  }
  return sources;
}

std::string given_value(const RunSources& sources, std::string_view name) {
  std::string value;
  for (const auto* settings : {&sources.environment, &sources.command_line}) {
    for (const Setting& setting : *settings) {
      if (setting.name == name) value = setting.value;
    }
  }
  return value;
}

void fail_without_recipe() {
  throw ConfigurationError(fmt::format("--recipe is missing; recipes are {}, and paths end in .ini",
                                       fmt::join(recipe_names(), ", ")));
}

}  // namespace orchard
