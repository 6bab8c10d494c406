// Moves of rows between tokens and experts on GPUs, from sm_80 on.
//
// Bytes, per kept choice and element of e bytes: DispatchForward e, and e per token (2·e where the slots
// are not at hand), CombineBackward 2·e and e per
// token; the two sums (DispatchBackward, CombineForward) read each row once and write each token
// once. FLOPs: 2 per row element read, 3 in CombineBackward. Bound: HBM bandwidth.
//
// A warp tends one token: it holds the numbers of its rows, so that a lane has the loads of up to
// eight of them in flight, and writes what it sums once, in slot order. Room for eight rows would
// cost tokens with two of them half of the warps that fit onto an SM, so there are instances for two
// and for eight, and where rows are added up one for the most that a slot can have.
#include <algorithm>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/copy_rows.h"
#include "kernels/gpu/pieces.h"
#include "kernels/gpu/warp.h"
#include "kernels/permute/permute.h"
#include "kernels/permute/permute_gpu.h"

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

// Which rows belong to which tokens, and what they weigh.
struct Slots {
  const std::int32_t* slot;  // [tokens, k · parts]
  const float* gates;        // [tokens, k], or nullptr: all 1
  std::int64_t tokens;
  int count;  // k · parts
  int parts;  // that share a gate
};

Slots slots_of(const ConstTensor& slot, const ConstTensor& gates) {
  const std::int64_t k = gates ? gates.dim(1) : std::max<std::int64_t>(slot.dim(1), 1);
  return {.slot = slot.data<std::int32_t>(),
          .gates = gates.data<float>(),
          .tokens = slot.dim(0),
          .count = static_cast<int>(slot.dim(1)),
          .parts = static_cast<int>(std::max<std::int64_t>(slot.dim(1) / k, 1))};
}

// The rows of one token from column `first` of its slot on, at most `most` of them, and their gates.
template <int most>
struct TokenSlots {
  int row[most];  // -1: none
  float gate[most];
};
template <int most>
__device__ TokenSlots<most> slots_of_token(const Slots& slots, std::int64_t token, int first) {
  TokenSlots<most> own;
#pragma unroll
  for (int i = 0; i < most; ++i) {
    own.row[i] = first + i < slots.count ? load(slots.slot + token * slots.count + first + i) : -1;
  }
  const std::int64_t k = slots.count / slots.parts;
#pragma unroll
  for (int i = 0; i < most; ++i) {
    const bool weighed = own.row[i] >= 0 && slots.gates != nullptr;
    own.gate[i] = weighed ? load(slots.gates + token * k + (first + i) / slots.parts) : 1.0f;
  }
  return own;
}

// Calls use(i, row i) for the rows of a token, of which it reads [column, column + n), in order.
template <int n, class T, int most, class Use>
__device__ void for_each_row(const TokenSlots<most>& slots, const T* rows, std::int64_t hidden,
                             std::int64_t column, const Use& use) {
  constexpr int at_once = most <= 8 ? most : 4;  // their numbers take registers, too
#pragma unroll
  for (int first = 0; first < most; first += at_once) {
    Piece<T, n> held[at_once] = {};
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      if (slots.row[first + i] >= 0) {
        held[i] = load_piece<n>(rows + slots.row[first + i] * hidden + column);
      }
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      if (slots.row[first + i] >= 0) use(first + i, values_of(held[i]));
    }
  }
}

// ---- sums over slots ---------------------------------------------------------------------------

// sums[t] = extra[t] + Σ_i gates[t, i / parts] · rows[slot[t, i]], in slot order.
template <class T>
struct SlotSum {
  const T* rows;
  Slots slots;
  const T* extra;  // [tokens, hidden], or nullptr; sums may alias it
  T* sums;         // [tokens, hidden]
  std::int64_t hidden;
};

template <class T, int n, int most>
__global__ void __launch_bounds__(32 * block_warps) sum_slots(SlotSum<T> op) {
  const std::int64_t token = warp_of_grid();
  if (token >= op.slots.tokens) return;
  const TokenSlots<most> slots = slots_of_token<most>(op.slots, token, 0);
  for (std::int64_t column = lane_of_thread() * n; column < op.hidden; column += 32 * n) {
    Values<n> total{};
    if (op.extra != nullptr) total = load_values<n>(op.extra + token * op.hidden + column);
    for_each_row<n>(slots, op.rows, op.hidden, column, [&](int slot, const Values<n>& row) {
#pragma unroll
      for (int i = 0; i < n; ++i) total[i] = fmaf(slots.gate[slot], row[i], total[i]);
    });
    store_values(op.sums + token * op.hidden + column, total);
  }
}

template <class T>
void sum_slots(Stream& stream, const char* name, const SlotSum<T>& op) {
  visit_piece<T>(op.hidden, {op.rows, op.extra, op.sums}, [&](auto n) {
    const auto kernel = op.slots.count <= 2   ? sum_slots<T, n, 2>
                        : op.slots.count <= 8 ? sum_slots<T, n, 8>
                                              : sum_slots<T, n, max_slots>;
    launch_warps(stream, name, op.slots.tokens, kernel, op);
  });
}

void dispatch_backward(Stream& stream, const DispatchBackward& op) {
  visit_float(op.d_x.dtype(), [&]<class T>(T) {
    sum_slots<T>(stream, "dispatch_backward",
                 {.rows = op.d_rows.data<T>(),
                  .slots = slots_of(op.slot, {}),
                  .extra = op.d_extra.data<T>(),
                  .sums = op.d_x.data<T>(),
                  .hidden = op.d_x.dim(1)});
  });
}

void combine_forward(Stream& stream, const CombineForward& op) {
  visit_float(op.y.dtype(), [&]<class T>(T) {
    sum_slots<T>(stream, "combine",
                 {.rows = op.rows.data<T>(),
                  .slots = slots_of(op.slot, op.gates),
                  .extra = nullptr,
                  .sums = op.y.data<T>(),
                  .hidden = op.y.dim(1)});
  });
}

// ---- CombineBackward ---------------------------------------------------------------------------

template <class T>
struct SpreadGradient {
  const T* rows;
  Slots slots;
  const T* d_y;    // [tokens, hidden]
  T* d_rows;       // may alias rows
  float* d_gates;  // [tokens, k]
  std::int64_t hidden;
};

// Rows do not meet here: a token of more than `most` goes through d_y again for the next ones.
template <class T, int n, int most>
__global__ void __launch_bounds__(32 * block_warps) spread_gradient(SpreadGradient<T> op) {
  const std::int64_t token = warp_of_grid();
  if (token >= op.slots.tokens) return;
  float* const d_gates = op.d_gates + token * (op.slots.count / op.slots.parts);
  float d_gate = 0;  // of the choice whose parts are being added
  for (int first = 0; first < op.slots.count; first += most) {
    const TokenSlots<most> slots = slots_of_token<most>(op.slots, token, first);
    float dot[most] = {};
    for (std::int64_t column = lane_of_thread() * n; column < op.hidden; column += 32 * n) {
      const Values<n> d_y = load_values<n>(op.d_y + token * op.hidden + column);
      for_each_row<n>(slots, op.rows, op.hidden, column, [&](int slot, const Values<n>& row) {
        Values<n> d_row;
#pragma unroll
        for (int i = 0; i < n; ++i) {
          dot[slot] = fmaf(d_y[i], row[i], dot[slot]);
          d_row[i] = slots.gate[slot] * d_y[i];
        }
        store_values(op.d_rows + slots.row[slot] * op.hidden + column, d_row);
      });
    }
#pragma unroll
    for (int i = 0; i < most; ++i) {
      if (first + i >= op.slots.count) break;
      d_gate += warp_sum(dot[i]);
      if ((first + i + 1) % op.slots.parts != 0) continue;
      if (lane_of_thread() == 0) store(d_gates + (first + i) / op.slots.parts, d_gate);
      d_gate = 0;
    }
  }
}

// rows[r] = 0 for the padding rows below *row_count of the 32 that warp `warp` looks at.
template <class Unit>
__device__ void clear_padding_rows(const std::int32_t* source, const std::int32_t* row_count,
                                   Unit* rows, std::int64_t units, std::int64_t warp) {
  const std::int64_t first = warp * 32, row = first + lane_of_thread();
  const bool padding = row < load(row_count) && load(source + row) < 0;
  for (unsigned left = __ballot_sync(all_lanes, padding); left != 0; left &= left - 1) {
    Unit* const target = rows + (first + __ffs(static_cast<int>(left)) - 1) * units;
    for (std::int64_t i = lane_of_thread(); i < units; i += 32) store(target + i, Unit{});
  }
}

template <class Unit>
__global__ void __launch_bounds__(32 * block_warps)
    clear_padding(const std::int32_t* source, const std::int32_t* row_count, Unit* d_rows,
                  std::int64_t units) {
  clear_padding_rows(source, row_count, d_rows, units, warp_of_grid());
}

void clear_padding(Stream& stream, const CombineBackward& op) {
  const std::int32_t* const row_count =
      op.row_offsets.data<std::int32_t>() + op.row_offsets.dim(0) - 1;
  visit_unit(row_bytes(op.d_rows), {op.d_rows.raw()}, [&]<class Unit>(Unit, std::int64_t units) {
    launch_warps(stream, "clear_padding", ceil_div(op.d_rows.dim(0), 32), clear_padding<Unit>,
                 op.source.data<std::int32_t>(), row_count, static_cast<Unit*>(op.d_rows.raw()),
                 units);
  });
}

void combine_backward(Stream& stream, const CombineBackward& op) {
  visit_float(op.rows.dtype(), [&]<class T>(T) {
    const SpreadGradient<T> spread{.rows = op.rows.data<T>(),
                                   .slots = slots_of(op.slot, op.gates),
                                   .d_y = op.d_y.data<T>(),
                                   .d_rows = op.d_rows.data<T>(),
                                   .d_gates = op.d_gates.data<float>(),
                                   .hidden = op.d_y.dim(1)};
    visit_piece<T>(spread.hidden, {spread.rows, spread.d_y, spread.d_rows}, [&](auto n) {
      launch_warps(stream, "combine_backward", spread.slots.tokens,
                   spread.slots.count <= 2 ? spread_gradient<T, n, 2> : spread_gradient<T, n, 8>,
                   spread);
    });
  });
  if (op.source) clear_padding(stream, op);
}

// ---- DispatchForward ---------------------------------------------------------------------------

// Rows cut into units, as for copy_rows.
template <class Unit>
struct SpreadRows {
  const Unit* x;
  const std::int32_t* slot;       // [tokens, count]
  const std::int32_t* source;     // [max_rows]
  const std::int32_t* row_count;  // in use
  Unit* rows;
  std::int64_t tokens, units;
  int count;  // slots of a token
};

// The warps of the tokens come first, then those that look for padding.
template <class Unit>
__global__ void __launch_bounds__(32 * block_warps) spread_rows(SpreadRows<Unit> op) {
  constexpr int in_flight = 4;
  const std::int64_t token = warp_of_grid();
  if (token >= op.tokens) {
    return clear_padding_rows(op.source, op.row_count, op.rows, op.units, token - op.tokens);
  }
  const int lane = lane_of_thread();
  const int own_row = lane < op.count ? load(op.slot + token * op.count + lane) : -1;
  const Unit* const from = op.x + token * op.units;
  // All lanes take as many turns, for the shuffles.
  for (std::int64_t begin = 0; begin < op.units; begin += 32 * in_flight) {
    const auto at = [&](int i) { return begin + 32 * i + lane; };
    Unit held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) held[i] = at(i) < op.units ? load(from + at(i)) : Unit{};
    for (int j = 0; j < op.count; ++j) {
      const std::int64_t row = __shfl_sync(all_lanes, own_row, j);
      if (row < 0) continue;
      Unit* const to = op.rows + row * op.units;
#pragma unroll
      for (int i = 0; i < in_flight; ++i) {
        if (at(i) < op.units) store(to + at(i), held[i]);
      }
    }
  }
}

void dispatch_forward(Stream& stream, const DispatchForward& op) {
  const std::int32_t* const row_count =
      op.row_offsets.data<std::int32_t>() + op.row_offsets.dim(0) - 1;
  if (!op.slot) {
    return copy_gathered_rows(stream, "dispatch", op.x, op.source.data<std::int32_t>(), 0, op.rows,
                              row_count);
  }
  visit_unit(row_bytes(op.rows), {op.x.raw(), op.rows.raw()},
             [&]<class Unit>(Unit, std::int64_t units) {
               const SpreadRows<Unit> spread{.x = static_cast<const Unit*>(op.x.raw()),
                                             .slot = op.slot.data<std::int32_t>(),
                                             .source = op.source.data<std::int32_t>(),
                                             .row_count = row_count,
                                             .rows = static_cast<Unit*>(op.rows.raw()),
                                             .tokens = op.x.dim(0),
                                             .units = units,
                                             .count = static_cast<int>(op.slot.dim(1))};
               launch_warps(stream, "dispatch", spread.tokens + ceil_div(op.rows.dim(0), 32),
                            spread_rows<Unit>, spread);
             });
}

}  // namespace

void register_permute_rows(OperationTable& table) {
  table.add<DispatchForward>(dispatch_forward);
  table.add<DispatchBackward>(dispatch_backward);
  table.add<CombineForward>(combine_forward);
  table.add<CombineBackward>(combine_backward);
}

}  // namespace orchard::GPU_NAMESPACE
