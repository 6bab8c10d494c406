// A kernel that synchronises as it must gives the same bits in every order of threads and blocks.
#pragma once

#include <functional>
#include <vector>

#include "tests/kernels/device_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {

// `results_of` runs something on a stream of the emulator and returns all it wrote.
inline void expect_same_in_every_thread_order(
    const std::function<std::vector<Guarded>(Stream&)>& results_of) {
  const auto results_in = [&](const SimtOptions& options) {
    const auto device = make_policy_device(options);
    return results_of(*device->make_stream());
  };
  const std::vector<Guarded> fifo = results_in({});
  EXPECT_TRUE(fifo == results_in({.order = simt::ThreadOrder::reverse})) << "threads reversed";
  for (const std::uint64_t seed : {1, 2, 3}) {
    EXPECT_TRUE(fifo == results_in({.order = simt::ThreadOrder::random, .seed = seed}))
        << "threads shuffled with seed " << seed;
  }
}

}  // namespace orchard::testing
