// The arguments of one subcommand, on Boost.Program_options with its guessing switched off.
#pragma once

#include <boost/program_options.hpp>
#include <span>
#include <string>
#include <vector>

namespace orchard {

namespace program_options = boost::program_options;

class CommandLine {
 public:
  // `usage` opens the help text: how the command is called and what it does.
  explicit CommandLine(std::string usage);

  // Where options are added; --help is there already.
  program_options::options_description& options() { return options_; }
  // Goes at the end of the help text.
  void set_footer(std::string footer) { footer_ = std::move(footer); }
  // Arguments without a name go to this option.
  void collect_positional(const char* option) { positional_.add(option, -1); }

  enum class Outcome { run, helped };
  // After `helped` the help text has been printed and nothing is left to do. Throws
  // ConfigurationError for options that do not exist, naming the nearest that do, and for values
  // that are missing or malformed. `also_known` are names to suggest that belong elsewhere.
  Outcome parse(std::span<const std::string> arguments,
                std::span<const std::string> also_known = {});

  bool has(const std::string& name) const { return values_.count(name) != 0; }
  template <class T>
  const T& get(const std::string& name) const {
    return values_[name].as<T>();
  }
  // Empty where the option was not given.
  std::string text(const std::string& name) const;
  std::vector<std::string> list(const std::string& name) const;
  // The same, but the option must be there.
  std::string required(const std::string& name) const;

 private:
  std::string usage_, footer_;
  program_options::options_description options_;
  program_options::positional_options_description positional_;
  program_options::variables_map values_;
};

}  // namespace orchard
