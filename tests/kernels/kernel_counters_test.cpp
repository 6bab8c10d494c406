// docs/kernel_counters.tsv says what the tests count.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

namespace orchard::testing {
namespace {

using Lines = std::set<std::string>;  // two that name the same thing and differ are two

void read_lines(const std::filesystem::path& path, Lines& lines) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.insert(line);
}

// Without the figures: what was counted, and its shape.
std::string name_of_line(const std::string& line) {
  return line.substr(0, line.find('\t', line.find('\t') + 1));
}

void describe(const char* what, const Lines& lines, const Lines& others, std::string& text) {
  for (const std::string& line : lines)
    if (!others.contains(line)) text += what + line + '\n';
}

// Counts are of the source, whatever the compiler and the machine.
TEST(KernelCounters, TheTableSaysWhatIsSo) {
  const char* const reports = std::getenv("ORCHARD_COUNTERS_REPORTS");
  if (!reports) GTEST_SKIP() << "no reports to read: only CTest runs the tests that write them";
  Lines counted, committed;
  for (const auto& entry : std::filesystem::directory_iterator(reports))
    read_lines(entry.path(), counted);
  const auto twice = std::ranges::adjacent_find(counted, {}, name_of_line);
  EXPECT_EQ(twice, counted.end()) << "counted twice, not alike: " << *twice;

  counted.insert(
      "# Multiples of what the operation cannot do without: docs/kernels.md. Made by "
      "kernel_counters_test");
  counted.insert("#operation\tshape\tDRAM\tload sectors\tstore sectors\twavefronts\ttensor work");
  const std::string fresh = std::getenv("ORCHARD_NEW_COUNTERS_TABLE");
  std::ofstream table(fresh);
  for (const std::string& line : counted) table << line << '\n';
  read_lines(std::getenv("ORCHARD_COUNTERS_TABLE"), committed);
  std::string difference;
  describe("committed ", committed, counted, difference);
  describe("counted   ", counted, committed, difference);
  EXPECT_TRUE(difference.empty()) << difference << "if it should be so, copy " << fresh;
}

}  // namespace
}  // namespace orchard::testing
