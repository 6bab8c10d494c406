#include "launch/command.h"

#include <new>

#include "launch/configuration_error.h"

namespace orchard {

int exit_code_of(const std::exception& error) {
  const bool configuration = dynamic_cast<const ConfigurationError*>(&error) != nullptr;
  return configuration ? exit_configuration : exit_failure;
}

std::string message_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) {
    return "out of memory: use a smaller run.micro_batch, decoder.recompute=blocks or a smaller "
           "recipe";
  }
  return error.what();
}

}  // namespace orchard
