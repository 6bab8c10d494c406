// Runs commands as users do, in a shell.
#pragma once

#include <sys/wait.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <string>

#include "kernels/core/error.h"

namespace orchard::testing {

struct Outcome {
  int code = -1;
  std::string output;  // of both kinds
  double seconds = 0;
};

inline Outcome run_shell(const std::string& command) {
  const auto start = std::chrono::steady_clock::now();
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  require(pipe != nullptr, "cannot run {}", command);
  Outcome outcome;
  std::array<char, 4096> piece{};
  for (std::size_t n; (n = std::fread(piece.data(), 1, piece.size(), pipe)) > 0;)
    outcome.output.append(piece.data(), n);
  const int status = ::pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return outcome;
}

}  // namespace orchard::testing
