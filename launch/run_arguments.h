// The options that every command about a run takes: --recipe, --set, and those of [run] and [layout]
// by their own names (--micro-batch for run.micro_batch).
#pragma once

#include "launch/command_line.h"
#include "launch/options.h"

namespace orchard {

inline constexpr const char* resolved_recipe_name = "resolved.ini";

void add_run_arguments(CommandLine& line);

// What the user may have meant by a misspelt option: all options of a run.
std::vector<std::string> run_option_names();

// Command line and environment; `recipe` is empty where none was named.
RunSources run_sources(const CommandLine& line);

// The value a strong source gives an option, or nothing: before a recipe is known.
std::string given_value(const RunSources& sources, std::string_view name);

// Throws ConfigurationError that lists the recipes there are.
[[noreturn]] void fail_without_recipe();

}  // namespace orchard
