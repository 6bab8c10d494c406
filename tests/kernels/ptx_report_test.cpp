// What the tests named *_as_ptx found, over all of them: every kernel of the PTX modules was launched;
// what it wrote is what the host compiler's kernel wrote, bit for bit, but where the two compute
// differently; and it moves no more of global memory than the source says.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/kernels/ptx_front_end.h"

namespace orchard::testing {
namespace {

// Kernels whose results may differ in some bits. Each is held to the bounds of its fp64 reference by
// the test that ran it, with the PTX's result. nvcc fuses products and sums where the source writes
// both; CUDA's functions are not the host's, though each is within its own bound.
struct Difference {
  const char* kernel;  // in its name
  const char* reason;
};
constexpr Difference differences[] = {
    {"adafactor_measure<", "fused sums"},
    {"adafactor_update<", "fused sums"},
    {"attention_forward_mma<", "logf, and fused sums"},
    {"attention_forward_rows<", "logf, and fused sums"},
    {"attention_forward_wgmma", "logf, and fused sums"},
    {"choose<", "expf, logf"},
    {"cross_entropy<", "expf, logf"},
    {"cross_entropy_of_shards<", "expf"},
    {"softmax_of_shard<", "expf"},
    {"excite_backward<", "expf, in the sigmoid"},
    {"excite_forward<", "expf, in the sigmoid"},
    {"ScaleGradient<", "expf, in the sigmoid"},
    {"ActivateBackward<", "expf, in the sigmoid"},
    {"Activate<", "expf, in the sigmoid"},
    {"Gate<", "expf, in the sigmoid"},
    {"GateBackward<", "expf, in the sigmoid"},
    {"make_filter(", "fused sums"},
    {"norm_any_row<", "fused sums, rsqrtf"},
    {"norm_backward_any_row<", "fused sums"},
    {"norm_backward_rows<", "fused sums"},
    {"norm_rows<", "fused sums, rsqrtf"},
    {"qk_norm_rope_forward<", "fused sums, rsqrtf"},
};

// Products differ through their epilogues alone, expf in the sigmoid: in this test's launches, and in no
// other's.
constexpr const char* epilogues = "gemm_epilogue_test";
constexpr const char* products[] = {"gemm_f32<", "gemm_bf16<", "gemm_wgmma<", "gemm_add_slices<"};

bool is_product(const std::string& kernel) {
  return std::any_of(std::begin(products), std::end(products),
                     [&](const char* name) { return kernel.find(name) != std::string::npos; });
}

class PtxReport : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* const reports = std::getenv("ORCHARD_PTX_REPORTS");
    const char* const modules = std::getenv("ORCHARD_PTX_MODULES");
    if (!reports || !modules) {
      GTEST_SKIP() << "no reports on PTX: the build has no nvcc, or CTest does not run";
    }
    records_ = read_reports(reports);
    without_epilogues_ = read_reports(reports, epilogues);
    entries_ = simt::ptx::Program(simt::ptx::read_modules(modules)).entries();
  }

  LaunchRecords records_, without_epilogues_;
  std::vector<simt::ptx::EntryName> entries_;
};

TEST_F(PtxReport, EveryKernelRan) {
  EXPECT_GT(entries_.size(), 0u);
  for (const simt::ptx::EntryName& entry : entries_) {
    EXPECT_TRUE(records_.contains(text(entry))) << text(entry) << " was never launched";
  }
}

TEST_F(PtxReport, ResultsAreTheCompiledKernels) {
  std::map<std::string, bool> is_used;
  for (const auto& [kernel, record] : records_) {
    const auto plain = without_epilogues_.find(kernel);
    const bool differs = is_product(kernel)
                             ? plain != without_epilogues_.end() && plain->second.unequal > 0
                             : record.unequal > 0;
    if (!differs) continue;
    const auto known = std::find_if(
        std::begin(differences), std::end(differences),
        [&name = kernel](const Difference& d) { return name.find(d.kernel) != std::string::npos; });
    EXPECT_NE(known, std::end(differences))
        << kernel << ": " << record.unequal << " of " << record.launches << " launches differ";
    if (known != std::end(differences)) is_used[known->kernel] = true;
  }
  for (const Difference& difference : differences) {
    EXPECT_TRUE(is_used[difference.kernel]) << difference.kernel << " gives the same bits";
  }
  for (const char* const product : products) {
    EXPECT_TRUE(std::any_of(records_.begin(), records_.end(),
                            [&](const auto& entry) {
                              return entry.first.find(product) != std::string::npos &&
                                     entry.second.unequal > 0;
                            }))
        << product << " gives the same bits with every epilogue";
  }
}

TEST_F(PtxReport, MovesNoMoreThanTheSource) {
  for (const auto& [kernel, record] : records_) {
    EXPECT_LE(record.ptx_bytes, record.compiled_bytes) << kernel;
    EXPECT_LE(static_cast<double>(record.ptx_sectors),
              1.05 * static_cast<double>(record.compiled_sectors))
        << kernel;
  }
}

}  // namespace
}  // namespace orchard::testing
