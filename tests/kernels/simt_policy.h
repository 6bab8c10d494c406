// The emulator as a run of the tests wants it: ORCHARD_SIMT_POLICY names, separated by commas, what
// shall differ from what a test asks for.
//
//   races                            look for races
//   fifo, reverse, random            the order of threads and blocks
//   eager, lazy, random_completion   when asynchronous operations happen
//   seed=7                           of what is random
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/core/error.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/ptx_front_end.h"

namespace orchard::testing {

inline SimtOptions under_policy(SimtOptions options) {
  const char* const variable = std::getenv("ORCHARD_SIMT_POLICY");
  std::string_view rest = variable ? variable : "";
  while (!rest.empty()) {
    const std::string_view word = rest.substr(0, rest.find(','));
    rest.remove_prefix(word.size() < rest.size() ? word.size() + 1 : rest.size());
    constexpr std::string_view seed = "seed=";
    if (word == "races") {
      options.races = simt::Races::find;
    } else if (word == "fifo") {
      options.order = simt::ThreadOrder::fifo;
    } else if (word == "reverse") {
      options.order = simt::ThreadOrder::reverse;
    } else if (word == "random") {
      options.order = simt::ThreadOrder::random;
    } else if (word == "eager") {
      options.completion = simt::AsyncCompletion::eager;
    } else if (word == "lazy") {
      options.completion = simt::AsyncCompletion::lazy;
    } else if (word == "random_completion") {
      options.completion = simt::AsyncCompletion::random;
    } else if (word.starts_with(seed)) {
      options.seed = std::stoull(std::string(word.substr(seed.size())));
    } else {
      fail("ORCHARD_SIMT_POLICY has no word '{}'", word);
    }
  }
  return options;
}

inline std::unique_ptr<SimtDevice> make_policy_device(const SimtOptions& options = {}) {
  return make_simt_device(with_front_end(under_policy(options)));
}

}  // namespace orchard::testing
