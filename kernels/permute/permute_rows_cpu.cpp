// Moves of rows between tokens and experts on the CPU. Bound by memory: per kept choice and element
// of e bytes, DispatchForward moves 2·e, CombineBackward 3·e; the two sums (DispatchBackward,
// CombineForward) read each row once and write each token once. A whole row is contiguous.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/permute/permute_rows_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cstring>

#include "kernels/cpu/indices.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"
#include "kernels/permute/permute.h"
#include "kernels/permute/permute_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// sums[t] = extra[t] + Σ_i gates[t, i / parts] · rows[slot[t, i]], in order. Absent gates are 1.
struct SlotSum {
  ConstTensor rows, slot, gates, extra;
  Tensor sums;
};

template <class T>
void sum_slots(const SlotSum& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t hidden = op.sums.dim(1), slots = op.slot.dim(1);
  const float* const gates = op.gates.data<float>();
  const std::int64_t k = gates ? op.gates.dim(1) : slots, parts = slots / k;
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int32_t* const slot = op.slot.data<std::int32_t>() + t * slots;
    const T* kept[max_slots];
    float weights[max_slots];
    int count = 0;
    for (std::int64_t i = 0; i < slots; ++i) {
      if (slot[i] < 0) continue;
      kept[count] = op.rows.data<T>() + slot[i] * hidden;
      weights[count++] = gates ? gates[t * k + i / parts] : 1.0f;
    }
    const T* const extra = op.extra ? op.extra.data<T>() + t * hidden : nullptr;
    T* const sums = op.sums.data<T>() + t * hidden;
    for_each_vector(hidden, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      Vector total = extra ? load(extra + i, n) : zero();
      for (int j = 0; j < count; ++j) {
        total = hn::MulAdd(set(weights[j]), load(kept[j] + i, n), total);
      }
      store(total, sums + i, n);
    });
  }
}

template <class T>
void spread_gradient(const CombineBackward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t hidden = op.d_y.dim(1), k = op.gates.dim(1), parts = op.slot.dim(1) / k;
  for (std::int64_t t = begin; t < end; ++t) {
    const T* const d_y = op.d_y.data<T>() + t * hidden;
    for (std::int64_t i = t * k; i < (t + 1) * k; ++i) {
      Vector dot = zero();
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t row = op.slot.data<std::int32_t>()[i * parts + part];
        if (row < 0) continue;
        const Vector gate = set(op.gates.data<float>()[i]);
        const T* const rows = op.rows.data<T>() + row * hidden;
        T* const d_rows = op.d_rows.data<T>() + row * hidden;
        for_each_vector(hidden, [&](std::int64_t c, std::int64_t n) HWY_ATTR {
          const Vector gradient = load(d_y + c, n);
          dot = hn::MulAdd(gradient, load(rows + c, n), dot);
          store(hn::Mul(gate, gradient), d_rows + c, n);
        });
      }
      op.d_gates.data<float>()[i] = sum(dot);
    }
  }
}

void sum_all_slots(const SlotSum& op) {
  const auto sum_of = op.sums.dtype() == DType::f32 ? sum_slots<float> : sum_slots<bf16>;
  parallel_for(op.sums.dim(0), 16,
               [&](std::int64_t begin, std::int64_t end) { sum_of(op, begin, end); });
}

void dispatch_backward(Stream&, const DispatchBackward& op) {
  check_indices("DispatchBackward", "slot", op.slot, -1, op.d_rows.dim(0));
  sum_all_slots(
      {.rows = op.d_rows, .slot = op.slot, .gates = {}, .extra = op.d_extra, .sums = op.d_x});
}

void combine_forward(Stream&, const CombineForward& op) {
  check_indices("CombineForward", "slot", op.slot, -1, op.rows.dim(0));
  sum_all_slots({.rows = op.rows, .slot = op.slot, .gates = op.gates, .extra = {}, .sums = op.y});
}

void combine_backward(Stream&, const CombineBackward& op) {
  check_indices("CombineBackward", "slot", op.slot, -1, op.rows.dim(0));
  const auto spread =
      op.rows.dtype() == DType::f32 ? spread_gradient<float> : spread_gradient<bf16>;
  parallel_for(op.d_y.dim(0), 16,
               [&](std::int64_t begin, std::int64_t end) { spread(op, begin, end); });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(dispatch_backward);
HWY_EXPORT(combine_forward);
HWY_EXPORT(combine_backward);

namespace {

// Rows of all experts, padding included.
std::int64_t rows_in_use(std::string_view operation, const ConstTensor& row_offsets,
                         std::int64_t max_rows) {
  const std::int64_t rows = row_offsets.data<std::int32_t>()[row_offsets.dim(0) - 1];
  require(rows >= 0 && rows <= max_rows, "{}: row_offsets end at {}, the buffer has {} rows",
          operation, rows, max_rows);
  return rows;
}

void dispatch_forward(Stream&, const DispatchForward& op) {
  check_indices("DispatchForward", "source", op.source, -1, op.x.dim(0));
  const std::int64_t rows = rows_in_use("DispatchForward", op.row_offsets, op.rows.dim(0));
  const auto row_bytes = static_cast<std::size_t>(op.x.dim(1)) * size_of(op.x.dtype());
  const auto* const x = static_cast<const std::byte*>(op.x.raw());
  auto* const out = static_cast<std::byte*>(op.rows.raw());
  parallel_for(rows, row_multiple, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int32_t token = op.source.data<std::int32_t>()[row];
      std::byte* const to = out + static_cast<std::size_t>(row) * row_bytes;
      if (token < 0) {
        std::memset(to, 0, row_bytes);
      } else {
        std::memcpy(to, x + static_cast<std::size_t>(token) * row_bytes, row_bytes);
      }
    }
  });
}

void clear_padding_rows(const CombineBackward& op) {
  const std::int64_t rows = rows_in_use("CombineBackward", op.row_offsets, op.rows.dim(0));
  const auto row_bytes = static_cast<std::size_t>(op.rows.dim(1)) * size_of(op.rows.dtype());
  auto* const d_rows = static_cast<std::byte*>(op.d_rows.raw());
  for (std::int64_t row = 0; row < rows; ++row) {
    if (op.source.data<std::int32_t>()[row] >= 0) continue;
    std::memset(d_rows + static_cast<std::size_t>(row) * row_bytes, 0, row_bytes);
  }
}

}  // namespace

void register_permute_rows(OperationTable& table) {
  table.add<DispatchForward>(dispatch_forward);
  table.add<DispatchBackward>([](Stream& s, const DispatchBackward& op) {
    HWY_DYNAMIC_DISPATCH(dispatch_backward)(s, op);
  });
  table.add<CombineForward>([](Stream& s, const CombineForward& op) {
    HWY_DYNAMIC_DISPATCH(combine_forward)(s, op);
  });
  table.add<CombineBackward>([](Stream& s, const CombineBackward& op) {
    HWY_DYNAMIC_DISPATCH(combine_backward)(s, op);
    if (op.source) clear_padding_rows(op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
