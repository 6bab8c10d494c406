// What tests that run under mpirun share: the session, and groups of many shapes.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "comm/mpi.h"
#include "tests/exit_code.h"

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

// The ranks are cut into groups of `size`; this rank's.
inline std::unique_ptr<Communicator> group_of(Communicator& world, int size) {
  std::vector<int> places(static_cast<std::size_t>(size));
  std::iota(places.begin(), places.end(), world.rank() / size * size);
  return world.make_group(fmt::format("mesh-{}", size), places);
}

// A folder that all ranks see.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& world) : world_(world) {
    std::int64_t pid = ::getpid();
    std::vector<std::int64_t> pids(static_cast<std::size_t>(world.size()));
    world.all_gather_on_host({&pid, 1}, pids);
    path_ = std::filesystem::temp_directory_path() / fmt::format("orchard_shards_{}", pids[0]);
    std::filesystem::create_directories(path_);
  }
  ~SharedFolder() {
    world_.barrier();
    if (world_.rank() == 0) std::filesystem::remove_all(path_);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  Communicator& world_;
  std::filesystem::path path_;
};

// main of a test program whose ranks run together. An exception ends its rank, and mpirun then ends
// those that wait for it.
inline int rank_tests_main(int argc, char** argv) {
  session = std::make_unique<MpiSession>(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  GTEST_FLAG_SET(catch_exceptions, false);
  const int result = RUN_ALL_TESTS();
  // mpirun would take another code than 0 for a failure, and ends the ranks that are not done.
  const bool is_alone = session->world()->size() == 1;
  session.reset();
  return is_alone ? exit_code(result) : checked_result(result);
}

}  // namespace orchard::testing
