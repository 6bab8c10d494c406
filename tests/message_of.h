// What the Error that an action throws says.
#pragma once

#include <functional>
#include <string>

#include "kernels/core/error.h"

namespace orchard::testing {

// Empty if it throws none.
inline std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace orchard::testing
