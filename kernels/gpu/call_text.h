// How messages show a call of a C library: "cudaMallocAsync(0x7ffd..., 4096, 0x55d0...)".
#pragma once

#include <fmt/format.h>

#include <string>
#include <type_traits>

namespace orchard {

template <class T>
std::string argument_text(T argument) {
  if constexpr (std::is_null_pointer_v<T>) {
    return "null";
  } else if constexpr (std::is_pointer_v<T> && std::is_function_v<std::remove_pointer_t<T>>) {
    return fmt::format("{}", fmt::ptr(reinterpret_cast<const void*>(argument)));
  } else if constexpr (std::is_convertible_v<T, const char*>) {
    return argument ? fmt::format("\"{}\"", static_cast<const char*>(argument)) : "null";
  } else if constexpr (std::is_pointer_v<T>) {
    return argument ? fmt::format("{}", fmt::ptr(static_cast<const void*>(argument))) : "null";
  } else if constexpr (std::is_enum_v<T>) {
    return fmt::format("{}", static_cast<long long>(argument));
  } else if constexpr (std::is_arithmetic_v<T>) {
    return fmt::format("{}", argument);
  } else {
    return "{...}";  // a struct by value
  }
}

template <class... Arguments>
std::string call_text(const char* call, const Arguments&... arguments) {
  std::string text = call;
  text += '(';
  [[maybe_unused]] const char* separator = "";
  ((text += separator, text += argument_text(arguments), separator = ", "), ...);
  return text + ')';
}

}  // namespace orchard
