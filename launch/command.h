// The subcommands of `orchard`. Each gets the arguments that follow its name and returns the exit
// code; failures are exceptions.
#pragma once

#include <span>
#include <string>

namespace orchard {

using Arguments = std::span<const std::string>;

int command_train(Arguments arguments);
int command_pack(Arguments arguments);
int command_eval(Arguments arguments);
int command_generate(Arguments arguments);
int command_score(Arguments arguments);
int command_inspect(Arguments arguments);
int command_plan(Arguments arguments);

inline constexpr int exit_failure = 1;
inline constexpr int exit_configuration = 78;  // EX_CONFIG of sysexits.h

// The exit code that an exception stands for, and its message for the user.
int exit_code_of(const std::exception& error);
std::string message_of(const std::exception& error);

}  // namespace orchard
