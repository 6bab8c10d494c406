// Sums, conversions and reductions on the CPU: one pass over memory each, one or two FLOPs an
// element. Bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise/elementwise_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include "kernels/core/visit.h"
#include "kernels/cpu/loops-inl.h"
#include "kernels/cpu/reduction.h"
#include "kernels/cpu/register.h"
#include "kernels/device/device.h"
#include "kernels/elementwise/elementwise.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Elements [begin, end) of a. They are walked in segments that end where b starts again.
template <class T>
void add_range(const Add& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t period = op.b.numel();
  while (begin < end) {
    const std::int64_t at = begin % period;
    const std::int64_t count = std::min(end - begin, period - at);
    const T* const a = op.a.data<T>() + begin;
    const T* const b = op.b.data<T>() + at;
    T* const y = op.y.data<T>() + begin;
    for_each_vector(count, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Add(load(a + i, n), load(b + i, n)), y + i, n);
    });
    begin += count;
  }
}

void add(Stream&, const Add& op) {
  parallel_for(op.a.numel(), 4096, [&](std::int64_t begin, std::int64_t end) {
    visit_float(op.a.dtype(), [&]<class T>(T) { add_range<T>(op, begin, end); });
  });
}

template <class From, class To>
void convert_elements(const Convert& op) {
  const From* const x = op.x.data<From>();
  To* const y = op.y.data<To>();
  parallel_vectors(op.x.numel(), [&](std::int64_t i, std::int64_t n)
                                     HWY_ATTR { store(load(x + i, n), y + i, n); });
}

void convert(Stream&, const Convert& op) {
  visit_float(op.x.dtype(), [&]<class From>(From) {
    visit_float(op.y.dtype(), [&]<class To>(To) { convert_elements<From, To>(op); });
  });
}

template <class T>
void scale_elements(const Scale& op) {
  T* const x = op.x.data<T>();
  parallel_vectors(op.x.numel(), [&](std::int64_t i, std::int64_t n) HWY_ATTR {
    store(hn::Mul(load(x + i, n), set(op.factor)), x + i, n);
  });
}

void scale(Stream&, const Scale& op) {
  visit_float(op.x.dtype(), [&]<class T>(T) { scale_elements<T>(op); });
}

template <class T>
void add_rows(const ColumnSum& op, std::int64_t begin, std::int64_t end, float* partial) {
  const std::int64_t cols = op.x.dim(1);
  for (std::int64_t row = begin; row < end; ++row) {
    const T* const x = row_of<T>(op.x, row, cols);
    for_each_vector(cols, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Add(load(partial + i, n), load(x + i, n)), partial + i, n);
    });
  }
}

void column_sum(Stream& stream, const ColumnSum& op) {
  sum_over_rows(
      stream, op.x.dim(0), op.y, [&](std::int64_t begin, std::int64_t end, float* partial) {
        visit_float(op.x.dtype(), [&]<class T>(T) { add_rows<T>(op, begin, end, partial); });
      });
}

// In fp64 throughout: a sum over millions of gradients must neither lose digits nor overflow.
double squares_of(const float* x, std::int64_t count) {
  const hn::ScalableTag<double> wide;
  const hn::Rebind<float, decltype(wide)> narrow;
  const auto step = static_cast<std::int64_t>(hn::Lanes(wide));
  auto even = hn::Zero(wide), odd = hn::Zero(wide);
  std::int64_t i = 0;
  for (; i + 2 * step <= count; i += 2 * step) {
    const auto a = hn::PromoteTo(wide, hn::LoadU(narrow, x + i));
    const auto b = hn::PromoteTo(wide, hn::LoadU(narrow, x + i + step));
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  double total = hn::GetLane(hn::SumOfLanes(wide, hn::Add(even, odd)));
  for (; i < count; ++i) total += static_cast<double>(x[i]) * x[i];
  return total;
}

void sum_of_squares(Stream& stream, const SumOfSquares& op) {
  constexpr std::int64_t block = 16384;
  const std::int64_t n = op.x.numel();
  const float* const x = op.x.data<float>();
  auto* const partials = reinterpret_cast<double*>(
      stream.workspace(static_cast<std::size_t>((n + block - 1) / block) * sizeof(double)));
  const double total = sum_over_blocks(
      n, block, partials,
      [&](std::int64_t begin, std::int64_t end) { return squares_of(x + begin, end - begin); });
  *op.result.data<float>() = static_cast<float>(total);
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(add);
HWY_EXPORT(convert);
HWY_EXPORT(scale);
HWY_EXPORT(column_sum);
HWY_EXPORT(sum_of_squares);

void register_elementwise(OperationTable& table) {
  table.add<Add>([](Stream& s, const Add& op) { HWY_DYNAMIC_DISPATCH(add)(s, op); });
  table.add<Convert>([](Stream& s, const Convert& op) { HWY_DYNAMIC_DISPATCH(convert)(s, op); });
  table.add<Scale>([](Stream& s, const Scale& op) { HWY_DYNAMIC_DISPATCH(scale)(s, op); });
  table.add<ColumnSum>([](Stream& s, const ColumnSum& op) {
    HWY_DYNAMIC_DISPATCH(column_sum)(s, op);
  });
  table.add<SumOfSquares>([](Stream& s, const SumOfSquares& op) {
    HWY_DYNAMIC_DISPATCH(sum_of_squares)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
