// main() of the test programs. One whose tests were all skipped, since what they need is not here, exits with
// 77, which CTest counts as skipped: a program that showed nothing must not look like one that passed.
#include <gtest/gtest.h>

#include "tests/exit_code.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  return orchard::testing::exit_code(RUN_ALL_TESTS());
}
