// What a test program says to CTest.
#pragma once

#include <gtest/gtest.h>

namespace orchard::testing {

inline constexpr int skipped_exit_code = 77;  // SKIP_RETURN_CODE in cmake/OrchardTargets.cmake

// Of a program whose RUN_ALL_TESTS() gave `result`: failures, also those of fixtures and environments, come
// first, and one test that ran to its end makes it a program that ran.
inline int exit_code(int result) {
  const ::testing::UnitTest& program = *::testing::UnitTest::GetInstance();
  const bool only_skipped =
      program.skipped_test_count() > 0 && program.successful_test_count() == 0;
  return result == 0 && only_skipped ? skipped_exit_code : result;
}

}  // namespace orchard::testing
