// The command line of a benchmark that has options of its own.
#pragma once

#include <boost/program_options.hpp>
#include <iostream>

namespace orchard::bench {

class CommandLine {
 public:
  explicit CommandLine(const char* purpose) : options_(purpose) {
    options_.add_options()("help,h", "print this text");
  }

  // The default is what `value` holds.
  template <class T>
  void option(const char* name, T& value, const char* meaning) {
    namespace po = boost::program_options;
    options_.add_options()(name, po::value(&value)->default_value(value), meaning);
  }
  void flag(const char* name, bool& value, const char* meaning) {
    options_.add_options()(name, boost::program_options::bool_switch(&value), meaning);
  }

  // False where only the help was asked for, which it then has printed. Throws on anything that is no
  // option.
  bool parse(int argc, char** argv) {
    namespace po = boost::program_options;
    po::variables_map values;
    const auto parsed = po::command_line_parser(argc, argv)
                            .options(options_)
                            .positional(po::positional_options_description())
                            .run();
    po::store(parsed, values);
    po::notify(values);
    if (values.count("help")) std::cout << options_;
    return !values.count("help");
  }

 private:
  boost::program_options::options_description options_;
};

}  // namespace orchard::bench
