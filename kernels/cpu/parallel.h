// Loops over the OpenMP pool, which oneDNN shares. Work is split by index alone, never by timing,
// and every reduction in the CPU backend has a fixed shape, so results do not depend on the number
// of threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace orchard::cpu {

inline int thread_count() {
  return omp_get_max_threads();
}

// Calls body(begin, end) on disjoint ranges that cover [0, n). A range is a multiple of `grain`
// long, but for the last one, so that neighbouring threads do not share cache lines. Runs inline
// when the work is one grain.
template <class Body>
void parallel_for(std::int64_t n, std::int64_t grain, const Body& body) {
  if (n <= 0) return;
  const std::int64_t grains = (n + grain - 1) / grain;
  if (grains == 1 || omp_in_parallel()) return body(std::int64_t{0}, n);
  const auto threads = std::min<std::int64_t>(thread_count(), grains);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (std::int64_t t = 0; t < threads; ++t) {
    const std::int64_t begin = grains * t / threads * grain;
    const std::int64_t end = std::min(grains * (t + 1) / threads * grain, n);
    if (begin < end) body(begin, end);
  }
}

// Calls body(i) for every i in [0, n), handing indices out as threads become free: for tasks of
// uneven length.
template <class Body>
void parallel_tasks(std::int64_t n, const Body& body) {
#pragma omp parallel for schedule(dynamic, 1) if (n > 1 && !omp_in_parallel())
  for (std::int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace orchard::cpu
