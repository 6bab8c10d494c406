// Where a run's options come from. Strongest first:
//   the command line    --set stage1.peak_lr=1e-3; options of [run] also directly, --seed 7
//   the environment     ORCHARD_STAGE1_PEAK_LR=1e-3
//   the recipe          [stage1] peak_lr = 1e-3; under it the recipe named by [recipe] base
//   defaults            of the fields themselves
// Each option remembers which of them it came from, and every error about it says so.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "launch/configuration_error.h"
#include "launch/run_options.h"

namespace orchard {

struct Setting {
  std::string name;  // section.key
  std::string value;
  std::string origin;  // "1b.ini:12", "ORCHARD_RUN_SEED", "command line"
};

struct RunSources {
  std::string recipe;  // a name or a path, see find_recipe; empty: none
  std::vector<Setting> environment;
  std::vector<Setting> command_line;  // of two settings of one option the later wins
};

class ResolvedRun {
 public:
  // Throws ConfigurationError for an option that does not exist (naming the nearest that do), a
  // value outside of what its option allows, and options that do not fit each other (validate.h).
  explicit ResolvedRun(const RunSources& sources);

  // What the trainer reads: stages without steps are left out, the vision tower has the side of the
  // first stage, and max_positions holds the longest sequence.
  RunConfig config() const;

  // "stage1.side = 377 (nano.ini:12)".
  std::string describe(std::string_view name) const;

  enum class Show : std::uint8_t { values, origins };
  // An ini file that resolves to the same run. Stages without steps say only that; with origins,
  // each line ends in a comment that says where the value came from.
  std::string to_ini(Show show) const;

 private:
  void apply(const Setting& setting);

  RunConfig run_;                     // stage_count stages
  std::vector<std::string> origins_;  // of each of run_options(); empty: the default
};

// A name is looked up among the recipes that come with the program; what contains a slash or ends
// in .ini is a path, relative to `folder`. Throws ConfigurationError, naming the recipes there are.
std::filesystem::path find_recipe(std::string_view name, const std::filesystem::path& folder = {});
std::vector<std::string> recipe_names();

// The settings of a recipe, those of its bases first.
std::vector<Setting> read_recipe(const std::filesystem::path& path);

// ORCHARD_<SECTION>_<KEY> of this process. Throws ConfigurationError for a variable of that kind
// which no option has.
std::vector<Setting> environment_settings();

// "stage1.peak_lr=1e-3", as --set takes it.
Setting parse_assignment(std::string_view text);

// A recipe alone: benchmarks and tests see neither environment nor command line.
RunConfig load_recipe(const std::string& name);

}  // namespace orchard
