// What is wrong is what the user asked for, not the machine or the data: the program ends with exit
// code 78 (EX_CONFIG of sysexits.h), so scripts need not retry.
#pragma once

#include "kernels/core/error.h"

namespace orchard {

class ConfigurationError : public Error {
 public:
  using Error::Error;
};

template <class... Args>
void require_configuration(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    throw ConfigurationError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace orchard
