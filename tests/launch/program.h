// Runs the program as its users do, in a shell.
#pragma once

#include <fmt/format.h>

#include <string>

#include "tests/run_shell.h"

namespace orchard::testing {

inline Outcome orchard_alone(const std::string& arguments) {
  return run_shell(ORCHARD_PROGRAM " " + arguments);
}

// Any command line, on so many ranks.
inline std::string on_ranks(int ranks, const std::string& command) {
  return fmt::format(
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -n {} "
      "--oversubscribe --bind-to none {}",
      ranks, command);
}
inline Outcome run_on_ranks(int ranks, const std::string& command) {
  return run_shell(on_ranks(ranks, command));
}

inline Outcome orchard_on_two_ranks(const std::string& arguments) {
  return run_on_ranks(2, ORCHARD_PROGRAM " " + arguments);
}

}  // namespace orchard::testing
