// What the tests of matrix products share: a device for everything that can compute them, the error
// that a sum of products may have, and one product checked against its fp64 reference.
#pragma once

#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <string>

#include "kernels/gemm/gemm.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/environment.h"
#include "tests/kernels/same_precision.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {

// The CPU with this library; "auto" is what this CPU gets, "sgemm" is what a CPU without AVX-512
// gets, and widens bf16. Or another device: "simt", "simt90" (with the kernels of sm_90a), "cuda". Throws
// where the machine lacks it.
inline Device& device_with(const std::string& library) {
  static std::map<std::string, std::unique_ptr<Device>> devices;
  auto& device = devices[library];
  if (!device && library == "simt90") {
    device = make_policy_device({.compute_capability = 90});
  } else if (!device && (library == "simt" || library == "cuda")) {
    FoundDevice found = find_device(library == "simt" ? DeviceKind::simt : DeviceKind::cuda);
    require(found.device != nullptr, "{}: {}", library, found.absence);
    device = std::move(found.device);
  } else if (!device) {
    const Environment environment("ORCHARD_GEMM", library);
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

// Skips where the library or device is absent.
class LibraryTest : public ::testing::TestWithParam<LibraryCase> {
 protected:
  void SetUp() override {
    const std::string& library = GetParam().library;
    if (library != "openblas" && library != "cuda") return;
    try {
      device_with(library);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
};

// A library or device with every combination of dtypes that has a kernel of its own there: sm_90a computes
// in fp32 with the kernels of sm_80.
inline std::vector<LibraryCase> with_dtypes(std::initializer_list<const char*> libraries) {
  std::vector<LibraryCase> cases;
  for (const char* const library : libraries) {
    if (library != std::string_view("simt90")) cases.push_back({library, DType::f32, DType::f32});
    cases.push_back({library, DType::bf16, DType::bf16});
    cases.push_back({library, DType::bf16, DType::f32});
  }
  return cases;
}

// The devices beside the CPU that this build has.
inline std::vector<LibraryCase> gpu_cases() {
#ifdef ORCHARD_HAS_CUDA
  return with_dtypes({"simt", "simt90", "cuda"});
#else
  return with_dtypes({"simt", "simt90"});
#endif
}

inline void fill_nan(Guarded& tensor) {
  for (std::int64_t i = 0; i < tensor.size(); ++i)
    tensor.set(i, std::numeric_limits<double>::quiet_NaN());
}

struct Size {
  std::int64_t m, n, k;
  std::optional<std::int64_t> batch = {};

  std::int64_t products() const { return batch.value_or(1); }
  // Of one matrix, or a batch of them.
  Shape matrices(std::int64_t rows, std::int64_t cols) const {
    return batch ? Shape{*batch, rows, cols} : Shape{rows, cols};
  }
};

struct Form {
  Transpose transpose_a = Transpose::no, transpose_b = Transpose::no;
  Accumulate accumulate = Accumulate::overwrite;
  bool bias = false;

  bool ta() const { return transpose_a == Transpose::yes; }
  bool tb() const { return transpose_b == Transpose::yes; }
};

inline std::vector<Form> transposes() {
  std::vector<Form> forms;
  for (const Transpose a : {Transpose::no, Transpose::yes}) {
    for (const Transpose b : {Transpose::no, Transpose::yes}) forms.push_back({a, b});
  }
  return forms;
}

inline std::vector<Form> every_form() {
  std::vector<Form> forms;
  for (Form form : transposes()) {
    for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
      form.accumulate = accumulate;
      for (const bool bias : {false, true}) {
        form.bias = bias;
        forms.push_back(form);
      }
    }
  }
  return forms;
}

inline std::string text(const Form& form, const Size& size) {
  return fmt::format("{}{} m {} n {} k {} add {} bias {} batch {}", form.ta() ? 'T' : 'N',
                     form.tb() ? 'T' : 'N', size.m, size.n, size.k,
                     form.accumulate == Accumulate::add, form.bias, size.products());
}

// Random operands; small integers make every sum exact in any order.
enum class Values : std::uint8_t { normal, integers };

inline Guarded random_values(Values values, DType dtype, Shape shape, unsigned seed) {
  Guarded out = random_normal(dtype, shape, seed);
  if (values == Values::integers) {
    for (std::int64_t i = 0; i < out.size(); ++i) out.set(i, std::round(2 * out.at(i)));
  }
  return out;
}

// How a product is run: as users do, or with a kernel of the test's choice.
using GemmRunner = std::function<void(Stream&, const Gemm&)>;

inline void run_as_users_do(Stream& stream, const Gemm& op) {
  run(stream, op);
}

// A product, or a batch of them, and its fp64 reference, for one kernel or several.
class GemmProblem {
 public:
  GemmProblem(DType in, DType out, const Size& size, const Form& form, Values values)
      : size_(size),
        form_(form),
        values_(values),
        a_(random_values(values, in,
                         form.ta() ? size.matrices(size.k, size.m) : size.matrices(size.m, size.k),
                         1)),
        b_(random_values(values, in,
                         form.tb() ? size.matrices(size.n, size.k) : size.matrices(size.k, size.n),
                         2)),
        bias_(random_values(values, in, {size.n}, 3)),
        c_(random_values(values, out, size.matrices(size.m, size.n), 4)),
        expected_(sums<double>()) {
    if (form.accumulate == Accumulate::overwrite) fill_nan(c_);  // must not be read
  }

  // Runs the product twice and compares it with the reference: within the bound of its sums, or, with
  // integers, equal to it rounded once.
  void check(Stream& stream, const GemmRunner& run_gemm) {
    SCOPED_TRACE(text(form_, size_));
    const Guarded c = computed(stream, run_gemm), again = computed(stream, run_gemm);
    if (values_ == Values::integers) {
      EXPECT_TRUE(c == rounded_to(c.dtype(), c.shape(), expected_))
          << "sums of integers are not exact";
    } else {
      expect_close(c, expected_, gemm_bound(size_.k, c.dtype()), "c");
    }
    EXPECT_TRUE(again == c) << "two runs differ";
  }

  // c, brought from the device.
  Guarded computed(Stream& stream, const GemmRunner& run_gemm = run_as_users_do) {
    Guarded c = c_;
    OnDevice a_d(stream, a_), b_d(stream, b_), bias_d(stream, bias_), c_d(stream, c);
    Gemm op{.a = a_d,
            .b = b_d,
            .c = c_d,
            .transpose_a = form_.transpose_a,
            .transpose_b = form_.transpose_b,
            .accumulate = form_.accumulate};
    if (form_.bias) op.bias = bias_d.tensor();
    run_gemm(stream, op);
    c_d.download();
    stream.synchronize();
    return c;
  }

  const std::vector<double>& expected() const { return expected_; }  // in fp64, of c's shape
  // The same in fp32, each sum in the order of k, rounded once to c's dtype.
  Guarded plain() const { return rounded_to(c_.dtype(), c_.shape(), sums<float>()); }

 private:
  // The lines of matrix `product` along k: [mn, k].
  static std::vector<double> along_k(const Guarded& x, bool k_is_rows, std::int64_t mn,
                                     std::int64_t k, std::int64_t product) {
    const std::int64_t first = product * mn * k;
    std::vector<double> out(static_cast<std::size_t>(mn * k));
    for (std::int64_t i = 0; i < mn; ++i) {
      for (std::int64_t l = 0; l < k; ++l) {
        out[static_cast<std::size_t>(i * k + l)] =
            x.at(first + (k_is_rows ? l * mn + i : i * k + l));
      }
    }
    return out;
  }

  template <class Real>
  static Real dot(const double* x, const double* y, std::int64_t k) {
    Real sum = 0;
    if constexpr (std::is_same_v<Real, double>) {
#pragma omp simd reduction(+ : sum)
      for (std::int64_t l = 0; l < k; ++l) sum += x[l] * y[l];
    } else {
      for (std::int64_t l = 0; l < k; ++l) sum += static_cast<Real>(x[l]) * static_cast<Real>(y[l]);
    }
    return sum;
  }

  // Summed in Real, of c's shape.
  template <class Real>
  std::vector<double> sums() const {
    const std::int64_t m = size_.m, n = size_.n, k = size_.k;
    std::vector<double> out(static_cast<std::size_t>(c_.size()));
    for (std::int64_t product = 0; product < size_.products(); ++product) {
      const std::vector<double> a = along_k(a_, form_.ta(), m, k, product),
                                b = along_k(b_, !form_.tb(), n, k, product);
#pragma omp parallel for schedule(static) if (m * n * k > (1 << 20))
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          Real sum = dot<Real>(a.data() + i * k, b.data() + j * k, k);
          const std::int64_t at = (product * m + i) * n + j;
          if (form_.bias) sum += static_cast<Real>(bias_.at(j));
          if (form_.accumulate == Accumulate::add) sum += static_cast<Real>(c_.at(at));
          out[static_cast<std::size_t>(at)] = sum;
        }
      }
    }
    return out;
  }

  Size size_;
  Form form_;
  Values values_;
  Guarded a_, b_, bias_;
  Guarded c_;                     // before the product
  std::vector<double> expected_;  // of c's shape
};

inline void check_gemm(Stream& stream, DType in, DType out, const Size& size, const Form& form,
                       Values values = Values::normal,
                       const GemmRunner& run_gemm = run_as_users_do) {
  GemmProblem(in, out, size, form, values).check(stream, run_gemm);
}

}  // namespace orchard::testing
