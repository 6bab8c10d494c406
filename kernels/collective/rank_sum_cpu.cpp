#include "kernels/collective/rank_sum_cpu.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "kernels/collective/rank_sum.h"
#include "kernels/core/visit.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/register.h"

namespace orchard::cpu {
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
    parallel_for(count, 16 * block, [&](std::int64_t begin, std::int64_t end) {
      sum_blocks(reinterpret_cast<T*>(result), sources, begin, end);
    });
  });
}

void register_collective(OperationTable& table) {
  table.add<RankSum>([](Stream&, const RankSum& op) {
    std::vector<const std::byte*> sources(static_cast<std::size_t>(op.parts.dim(0)));
    const auto row_bytes = static_cast<std::size_t>(op.parts.dim(1)) * size_of(op.parts.dtype());
    for (std::size_t r = 0; r < sources.size(); ++r) {
      sources[r] = static_cast<const std::byte*>(op.parts.raw()) + r * row_bytes;
    }
    sources[static_cast<std::size_t>(op.own_rank)] = static_cast<const std::byte*>(op.own.raw());
    sum_in_rank_order(op.result.dtype(), static_cast<std::byte*>(op.result.raw()), sources,
                      op.result.numel());
  });
}

}  // namespace orchard::cpu
