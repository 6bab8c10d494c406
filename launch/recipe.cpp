// Finding and reading recipes.
#include <fmt/ranges.h>

#include <algorithm>

#include "data/atomic_file.h"
#include "launch/ini.h"
#include "launch/options.h"
#include "launch/suggest.h"

namespace orchard {
namespace {

namespace fs = std::filesystem;

// Beside an installed program, else in the source tree that the program was built from.
fs::path recipe_folder() {
  std::error_code unreadable;
  const fs::path program = fs::read_symlink("/proc/self/exe", unreadable);
  if (!unreadable) {
    fs::path installed = program.parent_path().parent_path() / ORCHARD_INSTALLED_RECIPES;
    if (fs::is_directory(installed)) return installed;
  }
  return ORCHARD_SOURCE_RECIPES;
}

bool is_path(std::string_view name) {
  return name.find('/') != std::string_view::npos || name.ends_with(".ini");
}

void read_into(std::vector<Setting>& settings, const fs::path& path, std::vector<fs::path> above) {
  const std::string file = path.filename().string();
  require_configuration(std::find(above.begin(), above.end(), path) == above.end(),
                        "recipe {} is, through its bases, a base of itself", path.string());
  above.push_back(path);
  const std::vector<IniEntry> entries = parse_ini(read_text(path), path.string());
  for (const IniEntry& entry : entries) {
    if (entry.name != "recipe.base") continue;
    read_into(settings, find_recipe(entry.value, path.parent_path()), above);
  }
  for (const IniEntry& entry : entries) {
    if (entry.name == "recipe.base") continue;
    settings.push_back({entry.name, entry.value, fmt::format("{}:{}", file, entry.line)});
  }
}

}  // namespace

std::vector<std::string> recipe_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(recipe_folder())) {
    if (entry.path().extension() == ".ini") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

fs::path find_recipe(std::string_view name, const fs::path& folder) {
  if (is_path(name)) {
    const fs::path path = folder / name;
    require_configuration(fs::is_regular_file(path), "there is no recipe {}", path.string());
    return fs::canonical(path);
  }
  const fs::path path = recipe_folder() / (std::string(name) + ".ini");
  const std::vector<std::string> names = recipe_names();
  require_configuration(fs::is_regular_file(path),
                        "there is no recipe {}{}; those that come with the program are {}, and a "
                        "path ends in .ini",
                        name, suggestion(name, names), fmt::join(names, ", "));
  return fs::canonical(path);
}

std::vector<Setting> read_recipe(const fs::path& path) {
  std::vector<Setting> settings;
  read_into(settings, path, {});
  return settings;
}

}  // namespace orchard
