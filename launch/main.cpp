// The program `orchard`.
#include <fmt/core.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <vector>

#include "launch/command.h"
#include "launch/configuration_error.h"
#include "launch/suggest.h"

namespace orchard {
namespace {

struct Command {
  std::string_view name, summary;
  int (*run)(Arguments);
};

constexpr std::array<Command, 7> commands{{
    {"train", "train a model through the stages of a recipe", command_train},
    {"pack", "build a training set from pictures, pages, texts and conversations", command_pack},
    {"eval", "measure a checkpoint on held-out samples", command_eval},
    {"generate", "answer prompts with a checkpoint", command_generate},
    {"score", "log-probabilities of given tokens under a checkpoint", command_score},
    {"inspect", "list what a checkpoint or a training set contains", command_inspect},
    {"plan", "bubble, memory and timeline of a pipeline schedule", command_plan},
}};

void print_usage(std::FILE* file) {
  fmt::print(file,
             "orchard: training multimodal mixture-of-experts language models\n\n"
             "usage: orchard <command> [options]\n\n");
  for (const Command& command : commands) {
    fmt::print(file, "  {:<10}{}\n", command.name, command.summary);
  }
  fmt::print(file, "\n`orchard <command> --help` lists the options of a command.\n");
}

int run(std::span<const std::string> words) {
  if (words.empty()) {
    print_usage(stderr);
    return exit_configuration;
  }
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    print_usage(stdout);
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& command : commands) {
    if (command.name == words[0]) return command.run(words.subspan(1));
    names.emplace_back(command.name);
  }
  throw ConfigurationError(fmt::format("there is no command {}{} (orchard --help lists all)",
                                       words[0], suggestion(words[0], names)));
}

}  // namespace

}  // namespace orchard

int main(int argc, char** argv) {
  // A file that outgrows its limit is an error like a full disk, not a death without a word.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    const std::vector<std::string> words(argv + 1, argv + argc);
    const int code = orchard::run(words);
    // What was printed counts only once it has arrived: a pipe may be closed, a disk full.
    std::cout.flush();
    if (!std::cout || std::fflush(stdout) != 0) orchard::fail("cannot write to standard output");
    return code;
  } catch (const std::exception& error) {
    fmt::print(stderr, "orchard: {}\n", orchard::message_of(error));
    return orchard::exit_code_of(error);
  }
}
