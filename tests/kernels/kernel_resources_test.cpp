// What ptxas makes of the kernels' PTX: no kernel keeps anything in local memory, no tensor-core pipeline
// is serialised, as many blocks fit a multiprocessor as the kernel states, every GPU since sm_80 has the
// shared memory for one, and docs/kernel_resources.tsv says what is so.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <tuple>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/simt/ptx_text/program.h"
#include "tests/kernels/ptx_reports.h"

namespace orchard::testing {
namespace {

// Of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
struct Multiprocessor {
  unsigned threads = 2048, blocks = 32, registers = 65536, shared_bytes = 0;
};
constexpr unsigned reserved_shared_bytes = 1024;  // that the system takes of each block's

Multiprocessor multiprocessor_of(const std::string& arch) {
  return {.shared_bytes = (arch == "sm_80" ? 164u : 228u) << 10};
}

unsigned round_up(unsigned value, unsigned multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct Resources {
  std::string kernel, arch;
  unsigned registers = 0, local_bytes = 0;
  unsigned stated_blocks = 1;              // by __launch_bounds__
  unsigned threads = 0, shared_bytes = 0;  // of the largest launch
  bool is_launched() const { return threads > 0; }

  unsigned warps() const { return (threads + 31) / 32; }
  // How many fit a multiprocessor. Registers are given to warps, 256 at a time.
  unsigned blocks() const {
    const Multiprocessor sm = multiprocessor_of(arch);
    const unsigned by_registers = sm.registers / (warps() * round_up(registers * 32, 256));
    const unsigned by_shared = sm.shared_bytes / (shared_bytes + reserved_shared_bytes);
    return std::min({sm.blocks, sm.threads / (warps() * 32), by_registers, by_shared});
  }
  double occupancy() const {
    return static_cast<double>(blocks() * warps() * 32) / multiprocessor_of(arch).threads;
  }
};

std::string output_of(const std::string& command) {
  std::string out;
  std::array<char, 4096> buffer{};
  FILE* const pipe = popen((command + " 2>&1").c_str(), "r");
  require(pipe != nullptr, "cannot run {}", command);
  while (std::fgets(buffer.data(), buffer.size(), pipe)) out += buffer.data();
  const int status = pclose(pipe);
  require(status == 0, "{} failed: {}", command, out);
  return out;
}

std::string word_after(const std::string& text, const std::string& marker, std::size_t from = 0) {
  const std::size_t at = text.find(marker, from);
  if (at == std::string::npos) return "";
  const std::size_t begin = text.find_first_not_of(" '", at + marker.size());
  return text.substr(begin, text.find_first_of(" ',\n", begin) - begin);
}

unsigned number_after(const std::string& text, const std::string& marker, std::size_t from) {
  const std::string word = word_after(text, marker, from);
  require(!word.empty(), "ptxas does not say {}", marker);
  return static_cast<unsigned>(std::stoul(word));
}

// Of the entry of this mangled name in the text of a module.
unsigned stated_blocks(const std::string& module, const std::string& mangled) {
  const std::size_t entry = module.find(".entry " + mangled + "(");
  const std::size_t body = module.find("\n{", entry);
  const std::size_t at = module.find(".minnctapersm", entry);
  return at < body ? number_after(module, ".minnctapersm", at) : 1;
}

// The paths in a file, one a line.
std::vector<std::string> paths_in(const std::string& file) {
  std::vector<std::string> out;
  std::ifstream list(file);
  for (std::string path; std::getline(list, path);)
    if (!path.empty()) out.push_back(path);
  return out;
}

// Modules, compiled once more.
class Compilation {
 public:
  Compilation(const std::vector<std::string>& modules, const LaunchRecords& launches,
              const std::string& ptxas)
      : version_(word_after(output_of(ptxas + " --version"), ", V")) {
    for (const std::string& path : modules) compile(path, ptxas, launches);
    std::ranges::sort(kernels_, {}, [](const Resources& r) { return std::tie(r.kernel, r.arch); });
  }

  const std::string& version() const { return version_; }
  const std::vector<Resources>& kernels() const { return kernels_; }
  // What ptxas said of modules in which it put waits between products that should overlap.
  const std::string& serialised() const { return serialised_; }

 private:
  void compile(const std::string& path, const std::string& ptxas, const LaunchRecords& launches) {
    std::ostringstream content;
    content << std::ifstream(path).rdbuf();
    const std::string module = content.str(), arch = word_after(module, ".target ");
    const std::string said =
        output_of(fmt::format("{} -v -arch={} -o /dev/null {}", ptxas, arch, path));
    if (said.find("(C75") != std::string::npos) serialised_ += path + "\n" + said;
    const std::string stem = std::filesystem::path(path).stem().string();
    const std::string marker = "Compiling entry function ";
    for (std::size_t at = 0; (at = said.find(marker, at)) != std::string::npos; ++at) {
      const std::string mangled = word_after(said, marker, at);
      const std::string plain = simt::ptx::plain_name(mangled);
      Resources r{.kernel = simt::ptx::text({stem, plain}), .arch = arch};
      r.registers = number_after(said, "Used ", at);
      const std::size_t frame = said.find(" bytes stack frame", at);
      r.local_bytes = number_after(said, "\n", said.rfind('\n', frame));
      r.stated_blocks = stated_blocks(module, mangled);
      for (const std::string& name : {r.kernel, plain}) {
        const auto launched = launches.find(name);
        if (launched == launches.end()) continue;
        r.threads = static_cast<unsigned>(launched->second.threads);
        r.shared_bytes = static_cast<unsigned>(launched->second.shared_bytes);
      }
      kernels_.push_back(r);
    }
  }

  std::vector<Resources> kernels_;
  std::string version_, serialised_;
};

class KernelResources : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* const modules = std::getenv("ORCHARD_PTX_MODULES");
    const char* const reports = std::getenv("ORCHARD_PTX_REPORTS");
    const char* const ptxas = std::getenv("ORCHARD_PTXAS");
    if (!modules || !reports || !ptxas)
      GTEST_SKIP() << "no PTX to look at: the build has no nvcc, or CTest does not run";
    static const Compilation once(paths_in(modules), read_reports(reports), ptxas);
    compilation_ = &once;
    ASSERT_GT(once.kernels().size(), 0u);
  }

  const Compilation& compilation() const { return *compilation_; }

 private:
  const Compilation* compilation_ = nullptr;
};

TEST_F(KernelResources, NothingLiesInLocalMemory) {
  for (const Resources& r : compilation().kernels()) EXPECT_EQ(r.local_bytes, 0u) << r.kernel;
}

TEST_F(KernelResources, NoProductWaitsForThoseItShouldOverlap) {
  EXPECT_EQ(compilation().serialised(), "");
}

// Else the two tests above could not fail: the words that they look for are ptxas's own.
TEST_F(KernelResources, WhatPtxasSaysOfFaultyKernelsIsUnderstood) {
  const Compilation faulty({std::getenv("ORCHARD_FAULTY_PTX")}, {}, std::getenv("ORCHARD_PTXAS"));
  ASSERT_EQ(faulty.kernels().size(), 2u);
  EXPECT_EQ(faulty.kernels()[0].local_bytes, 64u) << faulty.kernels()[0].kernel;  // keeps_an_array
  EXPECT_EQ(faulty.kernels()[1].local_bytes, 0u) << faulty.kernels()[1].kernel;
  EXPECT_NE(faulty.serialised().find("in function 'serialised'"), std::string::npos)
      << faulty.serialised();
}

TEST_F(KernelResources, AsManyBlocksFitAsTheKernelStates) {
  for (const Resources& r : compilation().kernels()) {
    if (!r.is_launched()) continue;
    EXPECT_GE(r.blocks(), r.stated_blocks) << r.kernel;
  }
}

// The kernels of sm_80 run on all of them. One that asks for more must have a twin for Room::least, which
// has been launched, too.
TEST_F(KernelResources, EveryGpuSinceAmpereHasTheSharedMemory) {
  for (const Resources& r : compilation().kernels()) {
    if (r.arch != "sm_80" || r.shared_bytes <= least_shared_bytes) continue;
    const std::string ample = "Room)0", least = "Room)1";
    const std::size_t at = r.kernel.find(ample);
    ASSERT_NE(at, std::string::npos) << r.kernel << " asks for " << r.shared_bytes << " bytes";
    const std::string name = std::string(r.kernel).replace(at, ample.size(), least);
    const auto twin = std::ranges::find(compilation().kernels(), name, &Resources::kernel);
    ASSERT_TRUE(twin != compilation().kernels().end() && twin->is_launched()) << name;
    EXPECT_LE(twin->shared_bytes, least_shared_bytes) << name;
  }
}

// Without parameters and namespaces.
std::string short_name(std::string kernel) {
  for (const std::string space : {"(anonymous namespace)::", "orchard::"}) {
    for (std::size_t at; (at = kernel.find(space)) != std::string::npos;)
      kernel.erase(at, space.size());
  }
  int depth = 0;  // of template arguments, which may have casts in them
  const auto parameters = std::ranges::find_if(kernel, [&](char c) {
    depth += (c == '<') - (c == '>');
    return c == '(' && depth == 0;
  });
  return {kernel.begin(), parameters};
}

// Registers are the compiler's choice, so the table holds for the version that it names.
TEST_F(KernelResources, TheTableSaysWhatIsSo) {
  std::ostringstream table;
  table << "# Of the largest launch among the tests; made by kernel_resources_test with CUDA "
        << compilation().version()
        << "\narch\tregisters\tthreads\tshared_bytes\tblocks\toccupancy\tkernel\n";
  for (const Resources& r : compilation().kernels()) {
    if (!r.is_launched()) continue;
    table << fmt::format("{}\t{}\t{}\t{}\t{}\t{:.0f}%\t{}\n", r.arch, r.registers, r.threads,
                         r.shared_bytes, r.blocks(), 100 * r.occupancy(), short_name(r.kernel));
  }
  const std::string fresh = std::getenv("ORCHARD_NEW_KERNEL_TABLE");
  std::ofstream(fresh) << table.str();
  std::ifstream file(std::getenv("ORCHARD_KERNEL_TABLE"));
  std::ostringstream committed;
  committed << file.rdbuf();
  if (word_after(committed.str(), "with CUDA ") != compilation().version())
    GTEST_SKIP() << "the table is of another CUDA than " << compilation().version()
                 << "; this one's is " << fresh;
  EXPECT_EQ(committed.str(), table.str()) << "if it should be so, copy " << fresh;
}

}  // namespace
}  // namespace orchard::testing
