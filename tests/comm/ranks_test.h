// What tests that run under mpirun share: the session, and groups of many shapes.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "comm/mpi.h"

namespace orchard::testing {

// Set by rank_tests_main before the first test.
inline std::unique_ptr<MpiSession> session;

// Calls body with groups that this rank is in; each is used by all of its ranks at once, while the
// other ranks use theirs.
inline void for_each_group(Communicator& world, const std::function<void(Communicator&)>& body) {
  const int rank = world.rank(), size = world.size();
  std::vector<int> all(static_cast<std::size_t>(size));
  std::iota(all.begin(), all.end(), 0);
  const auto with = [&](const char* name, const std::vector<int>& places) {
    SCOPED_TRACE(name);
    body(*world.make_group(name, places));
  };
  const auto those = [&](const std::function<bool(int)>& member) {
    std::vector<int> places;
    for (const int r : all)
      if (member(r)) places.push_back(r);
    return places;
  };
  {
    SCOPED_TRACE("world");
    body(world);
  }
  with("alone", {rank});
  with("backwards", {all.rbegin(), all.rend()});
  with("odd and even", those([&](int r) { return r % 2 == rank % 2; }));
  with("halves", those([&](int r) { return 2 * r / size == 2 * rank / size; }));
  with("first and others", those([&](int r) { return (r == 0) == (rank == 0); }));
}

// main of a test program whose ranks run together. An exception ends its rank, and mpirun then ends
// those that wait for it.
inline int rank_tests_main(int argc, char** argv) {
  session = std::make_unique<MpiSession>(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  GTEST_FLAG_SET(catch_exceptions, false);
  const int result = RUN_ALL_TESTS();
  session.reset();
  return result;
}

}  // namespace orchard::testing
