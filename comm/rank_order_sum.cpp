#include "comm/rank_order_sum.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/core/visit.h"
#include "kernels/cpu/parallel.h"

namespace orchard {
namespace {

inline float load(float value) {
  return value;
}
inline float load(bf16 value) {
  return to_float(value);
}
inline void store(float& place, float value) {
  place = value;
}
inline void store(bf16& place, float value) {
  place = to_bf16(value);
}

// Sums stay in the first-level cache while the sources stream through them.
constexpr std::int64_t block = 2048;

template <class T>
void sum_blocks(T* result, std::span<const std::byte* const> sources, std::int64_t begin,
                std::int64_t end) {
  std::array<float, block> sums;
  for (std::int64_t first = begin; first < end; first += block) {
    const std::int64_t n = std::min(block, end - first);
    const auto at = [&](std::size_t s) { return reinterpret_cast<const T*>(sources[s]) + first; };
    const T* const zeroth = at(0);
    for (std::int64_t i = 0; i < n; ++i) sums[static_cast<std::size_t>(i)] = load(zeroth[i]);
    for (std::size_t s = 1; s < sources.size(); ++s) {
      const T* const source = at(s);
      for (std::int64_t i = 0; i < n; ++i) sums[static_cast<std::size_t>(i)] += load(source[i]);
    }
    for (std::int64_t i = 0; i < n; ++i)
      store(result[first + i], sums[static_cast<std::size_t>(i)]);
  }
}

}  // namespace

void sum_in_rank_order(DType dtype, std::byte* result, std::span<const std::byte* const> sources,
                       std::int64_t count) {
  if (sources.size() == 1) {
    // A group of one, in place: nothing to do, and no pass over memory.
    const std::size_t bytes = static_cast<std::size_t>(count) * size_of(dtype);
    if (result != sources[0] && bytes > 0) std::memcpy(result, sources[0], bytes);
    return;
  }
  visit_float(dtype, [&]<class T>(T) {
    cpu::parallel_for(count, 16 * block, [&](std::int64_t begin, std::int64_t end) {
      sum_blocks(reinterpret_cast<T*>(result), sources, begin, end);
    });
  });
}

}  // namespace orchard
