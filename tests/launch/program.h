// Runs the program as its users do, in a shell.
#pragma once

#include "tests/run_shell.h"

namespace orchard::testing {

inline Outcome orchard_alone(const std::string& arguments) {
  return run_shell(ORCHARD_PROGRAM " " + arguments);
}

inline Outcome orchard_on_two_ranks(const std::string& arguments) {
  return run_shell(
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -n 2 --oversubscribe "
      "--bind-to none " ORCHARD_PROGRAM " " +
      arguments);
}

}  // namespace orchard::testing
