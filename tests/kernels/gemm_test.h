// What the tests of matrix products share: a device for every library that can compute them, and
// the error that a sum of products may have.
#pragma once

#include <cstdlib>
#include <limits>
#include <map>
#include <string>

#include "kernels/gemm/gemm.h"
#include "tests/kernels/op_test.h"

namespace orchard::testing {

// "auto" is what this CPU gets; "sgemm" is what a CPU without AVX-512 gets, and widens bf16.
inline Device& device_with(const std::string& library) {
  struct Environment {
    explicit Environment(const std::string& value) { setenv("ORCHARD_GEMM", value.c_str(), 1); }
    ~Environment() { unsetenv("ORCHARD_GEMM"); }
  };
  static std::map<std::string, std::unique_ptr<Device>> devices;
  auto& device = devices[library];
  if (!device) {
    const Environment environment(library);
    auto candidate = make_cpu_device();
    const auto stream = candidate->make_stream();
    Guarded empty(DType::f32, {0, 0});
    run(*stream, Gemm{.a = empty, .b = empty, .c = empty});  // the library is chosen at first use
    device = std::move(candidate);
  }
  return *device;
}

// Partial sums of k products of unit normals grow like sqrt(i), and each is rounded in fp32: an
// error of sqrt(k / 2) roundoffs of the result's rms; 8·sqrt(k) lets the worst of a million
// elements pass. A result in bf16 is rounded once more, and only once.
inline double gemm_bound(std::int64_t k, DType out) {
  return 8 * std::sqrt(static_cast<double>(k + 2)) * unit_roundoff(DType::f32) +
         (out == DType::bf16 ? 1.01 * unit_roundoff(DType::bf16) : 0);
}

struct LibraryCase {
  std::string library;
  DType in, out;
};

inline std::string name_of_case(const ::testing::TestParamInfo<LibraryCase>& test) {
  return fmt::format("{}_{}_to_{}", test.param.library, name_of(test.param.in),
                     name_of(test.param.out));
}

inline void fill_nan(Guarded& tensor) {
  for (std::int64_t i = 0; i < tensor.size(); ++i)
    tensor.set(i, std::numeric_limits<double>::quiet_NaN());
}

}  // namespace orchard::testing
