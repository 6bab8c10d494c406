// What a test program says to CTest.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>

namespace orchard::testing {

inline constexpr int skipped_exit_code = 77;  // SKIP_RETURN_CODE in cmake/OrchardTargets.cmake

// Of a program whose RUN_ALL_TESTS() gave `result`. A filter that no test's name passes is a failure: a
// test was renamed, and the filter must not go on as if it had shown something.
inline int checked_result(int result) {
  const ::testing::UnitTest& program = *::testing::UnitTest::GetInstance();
  if (result != 0 || program.test_to_run_count() > 0 || GTEST_FLAG_GET(list_tests)) return result;
  std::fprintf(stderr, "no test has a name that --gtest_filter=%s asks for\n",
               GTEST_FLAG_GET(filter).c_str());
  return 1;
}

// The same. Failures, also those of fixtures and environments, come first, and one test that ran to its end
// makes it a program that ran.
inline int exit_code(int result) {
  const ::testing::UnitTest& program = *::testing::UnitTest::GetInstance();
  const bool only_skipped =
      program.skipped_test_count() > 0 && program.successful_test_count() == 0;
  return result == 0 && only_skipped ? skipped_exit_code : checked_result(result);
}

}  // namespace orchard::testing
