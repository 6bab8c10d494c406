// Moves of rows between tokens and experts on GPUs, from sm_80 on.
//
// Bytes, per kept choice and element of e bytes: DispatchForward 2·e, CombineBackward 2·e and e per
// token; the two sums (DispatchBackward, CombineForward) read each row once and write each token
// once. FLOPs: 2 per row element read, 3 in CombineBackward. Bound: HBM bandwidth.
//
// A warp tends one token: it holds the addresses of its rows, so that a lane has the loads of all k
// choices in flight, and writes what it sums once, in choice order. Room for eight choices would
// cost tokens with two of them half of the warps that fit onto an SM, so there are two instances.
#include <type_traits>

#include "kernels/core/visit.h"
#include "kernels/device/device.h"
#include "kernels/gpu/copy_rows.h"
#include "kernels/gpu/pieces.h"
#include "kernels/gpu/warp.h"
#include "kernels/permute/permute.h"
#include "kernels/permute/permute_gpu.h"
#include "kernels/router/router.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_warps = 4;  // tokens of a block

__device__ inline int lane_of_thread() {
  return static_cast<int>(threadIdx.x) % 32;
}
__device__ inline std::int64_t warp_of_grid() {
  return static_cast<std::int64_t>(blockIdx.x) * block_warps + static_cast<int>(threadIdx.x) / 32;
}

template <class... Parameters, class... Arguments>
void launch_warps(Stream& stream, const char* name, std::int64_t warps,
                  void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (warps == 0) return;
  launch(
      stream,
      {.kernel = name, .grid = {blocks_for(name, warps, block_warps)}, .block = {32 * block_warps}},
      kernel, arguments...);
}

// The rows of one token's choices, at most `most` of them.
template <int most>
struct Choices {
  std::int64_t row[most];  // -1: none
};
template <int most>
__device__ Choices<most> choices_of(const std::int32_t* slot, std::int64_t token, int k) {
  Choices<most> choices;
#pragma unroll
  for (int j = 0; j < most; ++j) choices.row[j] = j < k ? load(slot + token * k + j) : -1;
  return choices;
}

// Calls body with the number of choices that a kernel has room for.
template <class Body>
void visit_most_choices(int k, const Body& body) {
  if (k <= 2) return body(std::integral_constant<int, 2>{});
  return body(std::integral_constant<int, max_top_k>{});
}

// ---- sums over choices -------------------------------------------------------------------------

// sums[t] = extra[t] + Σ_j gates[t, j] · rows[slot[t, j]], in choice order. Absent gates are 1.
template <class T>
struct SlotSum {
  const T* rows;
  const std::int32_t* slot;  // [tokens, k]
  const float* gates;        // [tokens, k], or nullptr
  const T* extra;            // [tokens, hidden], or nullptr; sums may alias it
  T* sums;                   // [tokens, hidden]
  std::int64_t tokens, hidden;
  int k;
};

template <class T, int n, int most>
__global__ void __launch_bounds__(32 * block_warps) sum_slots(SlotSum<T> op) {
  const std::int64_t token = warp_of_grid();
  if (token >= op.tokens) return;
  const Choices<most> choices = choices_of<most>(op.slot, token, op.k);
  float weight[most];
#pragma unroll
  for (int j = 0; j < most; ++j) {
    weight[j] = j < op.k && op.gates != nullptr ? load(op.gates + token * op.k + j) : 1.0f;
  }
  for (std::int64_t column = lane_of_thread() * n; column < op.hidden; column += 32 * n) {
    Values<n> total{};
    if (op.extra != nullptr) total = load_values<n>(op.extra + token * op.hidden + column);
    Piece<T, n> held[most];
#pragma unroll
    for (int j = 0; j < most; ++j) {
      if (choices.row[j] >= 0) {
        held[j] = load_piece<n>(op.rows + choices.row[j] * op.hidden + column);
      }
    }
#pragma unroll
    for (int j = 0; j < most; ++j) {
      if (choices.row[j] < 0) continue;
      const Values<n> row = values_of(held[j]);
#pragma unroll
      for (int i = 0; i < n; ++i) total[i] = fmaf(weight[j], row[i], total[i]);
    }
    store_values(op.sums + token * op.hidden + column, total);
  }
}

template <class T>
void sum_slots(Stream& stream, const char* name, const SlotSum<T>& op) {
  visit_piece<T>(op.hidden, {op.rows, op.extra, op.sums}, [&](auto n) {
    visit_most_choices(
        op.k, [&](auto most) { launch_warps(stream, name, op.tokens, sum_slots<T, n, most>, op); });
  });
}

void dispatch_backward(Stream& stream, const DispatchBackward& op) {
  visit_float(op.d_x.dtype(), [&]<class T>(T) {
    sum_slots<T>(stream, "dispatch_backward",
                 {.rows = op.d_rows.data<T>(),
                  .slot = op.slot.data<std::int32_t>(),
                  .gates = nullptr,
                  .extra = op.d_extra.data<T>(),
                  .sums = op.d_x.data<T>(),
                  .tokens = op.d_x.dim(0),
                  .hidden = op.d_x.dim(1),
                  .k = static_cast<int>(op.slot.dim(1))});
  });
}

void combine_forward(Stream& stream, const CombineForward& op) {
  visit_float(op.y.dtype(), [&]<class T>(T) {
    sum_slots<T>(stream, "combine",
                 {.rows = op.rows.data<T>(),
                  .slot = op.slot.data<std::int32_t>(),
                  .gates = op.gates.data<float>(),
                  .extra = nullptr,
                  .sums = op.y.data<T>(),
                  .tokens = op.y.dim(0),
                  .hidden = op.y.dim(1),
                  .k = static_cast<int>(op.slot.dim(1))});
  });
}

// ---- CombineBackward ---------------------------------------------------------------------------

template <class T>
struct SpreadGradient {
  const T* rows;
  const std::int32_t* slot;  // [tokens, k]
  const float* gates;        // [tokens, k]
  const T* d_y;              // [tokens, hidden]
  T* d_rows;                 // may alias rows
  float* d_gates;            // [tokens, k]
  std::int64_t tokens, hidden;
  int k;
};

template <class T, int n, int most>
__global__ void __launch_bounds__(32 * block_warps) spread_gradient(SpreadGradient<T> op) {
  const std::int64_t token = warp_of_grid();
  if (token >= op.tokens) return;
  const Choices<most> choices = choices_of<most>(op.slot, token, op.k);
  float gate[most], dot[most];
#pragma unroll
  for (int j = 0; j < most; ++j) {
    gate[j] = choices.row[j] >= 0 ? load(op.gates + token * op.k + j) : 0.0f;
    dot[j] = 0;
  }
  for (std::int64_t column = lane_of_thread() * n; column < op.hidden; column += 32 * n) {
    const Values<n> d_y = load_values<n>(op.d_y + token * op.hidden + column);
    Piece<T, n> held[most];
#pragma unroll
    for (int j = 0; j < most; ++j) {
      if (choices.row[j] >= 0) {
        held[j] = load_piece<n>(op.rows + choices.row[j] * op.hidden + column);
      }
    }
#pragma unroll
    for (int j = 0; j < most; ++j) {
      if (choices.row[j] < 0) continue;
      const Values<n> row = values_of(held[j]);
      Values<n> d_row;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        dot[j] = fmaf(d_y[i], row[i], dot[j]);
        d_row[i] = gate[j] * d_y[i];
      }
      store_values(op.d_rows + choices.row[j] * op.hidden + column, d_row);
    }
  }
#pragma unroll
  for (int j = 0; j < most; ++j) {
    if (j >= op.k) break;
    const float d_gate = warp_sum(dot[j]);
    if (lane_of_thread() == 0) store(op.d_gates + token * op.k + j, d_gate);
  }
}

// d_rows[r] = 0 for the padding rows below *row_count. A warp looks at 32 rows, then clears those
// it found together.
template <class Unit>
__global__ void __launch_bounds__(32 * block_warps)
    clear_padding(const std::int32_t* source, const std::int32_t* row_count, Unit* d_rows,
                  std::int64_t units) {
  const std::int64_t first = warp_of_grid() * 32, row = first + lane_of_thread();
  const std::int64_t rows = load(row_count);
  const bool padding = row < rows && load(source + row) < 0;
  for (unsigned left = __ballot_sync(all_lanes, padding); left != 0; left &= left - 1) {
    Unit* const target = d_rows + (first + __ffs(static_cast<int>(left)) - 1) * units;
    for (std::int64_t i = lane_of_thread(); i < units; i += 32) store(target + i, Unit{});
  }
}

void combine_backward(Stream& stream, const CombineBackward& op) {
  visit_float(op.rows.dtype(), [&]<class T>(T) {
    const SpreadGradient<T> spread{.rows = op.rows.data<T>(),
                                   .slot = op.slot.data<std::int32_t>(),
                                   .gates = op.gates.data<float>(),
                                   .d_y = op.d_y.data<T>(),
                                   .d_rows = op.d_rows.data<T>(),
                                   .d_gates = op.d_gates.data<float>(),
                                   .tokens = op.d_y.dim(0),
                                   .hidden = op.d_y.dim(1),
                                   .k = static_cast<int>(op.slot.dim(1))};
    visit_piece<T>(spread.hidden, {spread.rows, spread.d_y, spread.d_rows}, [&](auto n) {
      visit_most_choices(spread.k, [&](auto most) {
        launch_warps(stream, "combine_backward", spread.tokens, spread_gradient<T, n, most>,
                     spread);
      });
    });
  });
  const std::int32_t* const row_count =
      op.row_offsets.data<std::int32_t>() + op.row_offsets.dim(0) - 1;
  visit_unit(row_bytes(op.d_rows), {op.d_rows.raw()}, [&]<class Unit>(Unit, std::int64_t units) {
    launch_warps(stream, "clear_padding", ceil_div(op.d_rows.dim(0), 32), clear_padding<Unit>,
                 op.source.data<std::int32_t>(), row_count, static_cast<Unit*>(op.d_rows.raw()),
                 units);
  });
}

// ---- DispatchForward ---------------------------------------------------------------------------

void dispatch_forward(Stream& stream, const DispatchForward& op) {
  copy_gathered_rows(stream, "dispatch", op.x, op.source.data<std::int32_t>(), 0, op.rows,
                     op.row_offsets.data<std::int32_t>() + op.row_offsets.dim(0) - 1);
}

}  // namespace

void register_permute_rows(OperationTable& table) {
  table.add<DispatchForward>(dispatch_forward);
  table.add<DispatchBackward>(dispatch_backward);
  table.add<CombineForward>(combine_forward);
  table.add<CombineBackward>(combine_backward);
}

}  // namespace orchard::GPU_NAMESPACE
