// The sum of collectives on the CPU: each source is read once and the result written once, with as many
// additions as bytes / 4 of all sources but one. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/collective/rank_sum_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <cstring>
#include <vector>

#include "kernels/collective/rank_sum.h"
#include "kernels/collective/rank_sum_cpu.h"
#include "kernels/core/visit.h"
#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/register.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

template <class T>
void sum_range(T* result, std::span<const std::byte* const> sources, std::int64_t begin,
               std::int64_t end) {
  const auto at = [&](std::size_t s) { return reinterpret_cast<const T*>(sources[s]); };
  const std::int64_t step = lanes();
  std::int64_t i = begin;
  // Four vectors at a time: the sums stay in registers while the sources pass.
  for (; i + 4 * step <= end; i += 4 * step) {
    const T* p = at(0) + i;
    Vector a = load(p), b = load(p + step), c = load(p + 2 * step), d = load(p + 3 * step);
    for (std::size_t s = 1; s < sources.size(); ++s) {
      p = at(s) + i;
      a = hn::Add(a, load(p));
      b = hn::Add(b, load(p + step));
      c = hn::Add(c, load(p + 2 * step));
      d = hn::Add(d, load(p + 3 * step));
    }
    store_two(a, b, result + i);
    store_two(c, d, result + i + 2 * step);
  }
  for (; i < end; i += step) {
    const std::int64_t count = std::min(step, end - i);
    Vector sum = load(at(0) + i, count);
    for (std::size_t s = 1; s < sources.size(); ++s) sum = hn::Add(sum, load(at(s) + i, count));
    store(sum, result + i, count);
  }
}

void sum_sources(DType dtype, std::byte* result, std::span<const std::byte* const> sources,
                 std::int64_t count) {
  visit_float(dtype, [&]<class T>(T) {
    parallel_for(count, 32768, [&](std::int64_t begin, std::int64_t end) {
      sum_range(reinterpret_cast<T*>(result), sources, begin, end);
    });
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(sum_sources);

void sum_in_rank_order(DType dtype, std::byte* result, std::span<const std::byte* const> sources,
                       std::int64_t count) {
  if (sources.size() == 1) {
    // A group of one, in place: nothing to do, and no pass over memory.
    const std::size_t bytes = static_cast<std::size_t>(count) * size_of(dtype);
    if (result != sources[0] && bytes > 0) std::memcpy(result, sources[0], bytes);
    return;
  }
  HWY_DYNAMIC_DISPATCH(sum_sources)(dtype, result, sources, count);
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
#endif  // HWY_ONCE
