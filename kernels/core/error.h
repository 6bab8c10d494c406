// Errors are exceptions whose message names the thing, the place and the cure.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <utility>

namespace orchard {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Cold, so that a check stays small enough to be inlined.
template <class... Args>
[[noreturn, gnu::cold]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

// Throws Error with the formatted message unless `ok`. The arguments are evaluated always, and
// formatted only on failure: where a check is hot, pass objects (a shape), not texts of them.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(format, std::forward<Args>(args)...);
}

}  // namespace orchard
