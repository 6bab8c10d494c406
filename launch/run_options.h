// Every option of a run, in one table: its name, what it means, what it may be, and the field of
// RunConfig it fills. Recipes, the environment, the command line, --help and resolved.ini all go
// through this table and through nothing else.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/run_config.h"

namespace orchard {

inline constexpr int stage_count = 3;

struct RunOption {
  std::string name;    // section.key, "stage1.peak_lr"
  std::string help;    // one line
  std::string values;  // what it may be: "a whole number of at least 1", "f32 | bf16"
  // Fills the field from text; false when the text is not one of `values`, the field then being
  // untouched.
  std::function<bool(RunConfig&, std::string_view)> read;
  // The text that `read` turns into the field's value, exactly.
  std::function<std::string(const RunConfig&)> print;

  std::string_view section() const { return std::string_view(name).substr(0, name.find('.')); }
  std::string_view key() const { return std::string_view(name).substr(name.find('.') + 1); }
};

// In the order they are printed: those of a section follow each other.
std::span<const RunOption> run_options();

// Null when there is none of that name.
const RunOption* find_run_option(std::string_view name);

// What the options' functions work on: stage_count stages, every field at its default.
RunConfig default_run();

}  // namespace orchard
