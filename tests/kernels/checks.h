// Checks that many operation tests share: a run must repeat bit for bit whatever the number of
// threads, and an analytic gradient must agree with differences of the reference it was derived
// from.
#pragma once

#include <omp.h>

#include <initializer_list>

#include "tests/kernels/op_test.h"

namespace orchard::testing {

// Runs `op` with three threads, then again with one from the same initial outputs: equal bits.
template <class Operation>
void run_repeatedly(const Operation& op, std::initializer_list<Guarded*> outputs) {
  const int threads = omp_get_max_threads();
  const auto stream = cpu_device().make_stream();
  std::vector<Guarded> initial, first;
  for (const Guarded* output : outputs) initial.push_back(*output);
  omp_set_num_threads(3);
  run(*stream, op);
  stream->synchronize();
  for (const Guarded* output : outputs) first.push_back(*output);
  std::size_t i = 0;
  for (Guarded* output : outputs) *output = initial[i++];  // keeps the address: equal sizes
  omp_set_num_threads(1);
  run(*stream, op);
  stream->synchronize();
  omp_set_num_threads(threads);
  i = 0;
  for (const Guarded* output : outputs) {
    EXPECT_TRUE(*output == first[i]) << "output " << i << " differs between two runs";
    ++i;
  }
}

using Function = std::function<double(const std::vector<double>&)>;

// `gradient` is that of `f` at `x`: compared at a few coordinates with central differences. In fp64
// with step h the error is about h²·f''' + 1e-16·f/h, below 1e-8 for h = 1e-4 where values and
// derivatives are of order one; `scale` is the size of f where it is larger.
inline void expect_gradient(const Function& f, std::vector<double> x,
                            const std::vector<double>& gradient, const char* what,
                            double scale = 1) {
  ASSERT_EQ(x.size(), gradient.size()) << what;
  const double step = 1e-4;
  const std::size_t stride = x.size() / 8 + 1;
  for (std::size_t i = 0; i < x.size(); i += stride) {
    const double at = x[i];
    x[i] = at + step;
    const double above = f(x);
    x[i] = at - step;
    const double below = f(x);
    x[i] = at;
    EXPECT_NEAR(gradient[i], (above - below) / (2 * step), 1e-6 * scale) << what << "[" << i << "]";
  }
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

// The message of the Error that running `op` must throw.
template <class Operation>
std::string error_of(const Operation& op) {
  const auto stream = cpu_device().make_stream();
  try {
    run(*stream, op);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace orchard::testing
