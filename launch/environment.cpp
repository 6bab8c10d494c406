#include <unistd.h>

#include <algorithm>
#include <cctype>

#include "launch/options.h"
#include "launch/suggest.h"

namespace orchard {
namespace {

constexpr std::string_view prefix = "ORCHARD_";

std::string variable_of(const RunOption& option) {
  std::string name(prefix);
  for (const char c : option.name) {
    name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

}  // namespace

std::vector<Setting> environment_settings() {
  std::vector<std::string> variables;
  for (const RunOption& option : run_options()) variables.push_back(variable_of(option));
  std::vector<Setting> settings;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (!text.starts_with(prefix)) continue;
    const std::size_t equals = text.find('=');
    const std::string name(text.substr(0, equals));
    const auto found = std::find(variables.begin(), variables.end(), name);
    require_configuration(found != variables.end(),
                          "the environment has {}, but no option is called like that{}; unset it",
                          name, suggestion(name, variables));
    const RunOption& option = run_options()[static_cast<std::size_t>(found - variables.begin())];
    settings.push_back({option.name, std::string(text.substr(equals + 1)), name});
  }
  return settings;
}

}  // namespace orchard
