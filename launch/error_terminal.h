// Standard error as a terminal: progress of commands whose standard output others read.
#pragma once

#include <unistd.h>

#include <iostream>

#include "train/terminal.h"

namespace orchard {

inline Terminal error_terminal() {
  return {std::cerr, Terminal::kind_of(STDERR_FILENO), Terminal::columns_of(STDERR_FILENO)};
}

}  // namespace orchard
