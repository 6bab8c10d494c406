#include "launch/command_line.h"

#include <iostream>

#include "launch/configuration_error.h"
#include "launch/suggest.h"

namespace orchard {

CommandLine::CommandLine(std::string usage) : usage_(std::move(usage)), options_("Options", 100) {
  options_.add_options()("help,h", "print this text");
}

CommandLine::Outcome CommandLine::parse(std::span<const std::string> arguments,
                                        std::span<const std::string> also_known) {
  using Style = program_options::command_line_style::style_t;
  // Guessing would let --stage 2 match an option that merely begins like it.
  constexpr int style = Style::unix_style & ~Style::allow_guessing;
  const std::vector<std::string> words(arguments.begin(), arguments.end());
  try {
    program_options::store(program_options::command_line_parser(words)
                               .options(options_)
                               .positional(positional_)
                               .style(style)
                               .run(),
                           values_);
    program_options::notify(values_);
  } catch (const program_options::unknown_option& error) {
    std::vector<std::string> known(also_known.begin(), also_known.end());
    for (const auto& option : options_.options()) {
      known.push_back(option->canonical_display_name(Style::allow_long));
    }
    const std::string name = error.get_option_name();
    throw ConfigurationError(
        fmt::format("there is no option {}{} (--help lists all)", name, suggestion(name, known)));
  } catch (const program_options::error& error) {
    throw ConfigurationError(fmt::format("{} (--help lists all options)", error.what()));
  }
  if (!has("help")) return Outcome::run;
  std::cout << usage_ << "\n\n" << options_ << footer_;
  return Outcome::helped;
}

std::string CommandLine::text(const std::string& name) const {
  return has(name) ? get<std::string>(name) : std::string();
}

std::vector<std::string> CommandLine::list(const std::string& name) const {
  return has(name) ? get<std::vector<std::string>>(name) : std::vector<std::string>();
}

std::string CommandLine::required(const std::string& name) const {
  require_configuration(has(name), "--{} is missing (--help lists all options)", name);
  return get<std::string>(name);
}

}  // namespace orchard
