// QK-norm + RoPE on GPUs, from sm_80 on. With x̂ = x·r (r the inverse rms of a head), per pair of
// elements i and i + head_dim/2, turned by the token's angle:
//   forward   y = rotate(x̂·weight)
//   backward  h = d_y turned back, g = h·weight,
//             d_x = r·(g - x̂·mean(g·x̂)),  d_weight += Σ h·x̂ over tokens and heads
//
// Bytes: 2·e per element forward, 3·e backward, for elements of e bytes; a token's row of the rotation
// table is shared by its heads and stays in the caches. FLOPs: about 10 and 20. Bound: HBM bandwidth.
//
// A head is shared by `lanes` neighbouring lanes of a warp, so that its sums are shuffles. A lane
// holds both elements of its pairs: one 16-byte access in each half of the head. The gradient of the
// weight stays in registers while a block goes down a strip of heads, and the next head is on its way while
// one is worked on; the strips are then added in order.
#include <cstdint>
#include <limits>

#include "kernels/core/visit.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/columns.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/pieces.h"
#include "kernels/gpu/values.h"
#include "kernels/gpu/warp.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// Of a block. Forward has nothing but its occupancy to hide latency: nine small blocks need no more than 56
// registers a thread.
constexpr int forward_threads = 128, head_threads = 256;

template <class T>
struct Heads {
  const T* x;             // [count, head_dim], also y, d_y, d_x
  const T* weight;        // [head_dim]
  const float* rotation;  // [max_positions, head_dim]: cos | sin
  const int* positions;   // [tokens]
  std::int64_t count;     // tokens · heads
  int heads;              // of a token
  int head_dim;
  int max_positions;
  int lanes = 1;  // of a head: a power of two, at most 32

  T* y = nullptr;                // forward's; may alias x
  float* inverse_rms = nullptr;  // forward's, [count]
  float epsilon = 0;             // forward's

  const float* known_rms = nullptr;  // backward's: what forward left in inverse_rms
  const T* d_y = nullptr;            // backward's
  T* d_x = nullptr;                  // backward's; may alias d_y
  float* partials = nullptr;         // [strips, head_dim], or nullptr: d_weight is not wanted
  std::int64_t strip = 0;            // heads of a block, backward
};

// Elements i .. i + width and half + i .. of a head.
template <int width>
struct Pairs {
  Values<width> first, second;
};

template <int width, class T>
__device__ Pairs<width> load_pairs(const T* head, int half, int i) {
  return {load_values<width>(head + i), load_values<width>(head + half + i)};
}
template <int width, class T>
__device__ void store_pairs(T* head, int half, int i, const Pairs<width>& pairs) {
  store_values(head + i, pairs.first);
  store_values(head + half + i, pairs.second);
}

// The same as they lie in memory.
template <class T, int width>
struct RawPairs {
  Piece<T, width> first, second;
  __device__ Pairs<width> values() const { return {values_of(first), values_of(second)}; }
};
template <int width, class T>
__device__ RawPairs<T, width> load_raw_pairs(const T* head, int half, int i) {
  return {load_piece<width>(head + i), load_piece<width>(head + half + i)};
}

// The row of the rotation table of a head's token, and whether there is one. Where there is not, the
// results become NaN, which no training run overlooks.
struct Turn {
  const float* row = nullptr;
  bool known = false;
};

template <class T>
__device__ Turn turn_of(const Heads<T>& op, int position) {
  const bool known = position >= 0 && position < op.max_positions;
  return {op.rotation + (known ? static_cast<std::int64_t>(position) * op.head_dim : 0), known};
}
template <class T>
__device__ int position_of(const Heads<T>& op, std::int64_t head) {
  return load(op.positions + static_cast<unsigned>(head) / static_cast<unsigned>(op.heads));
}

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

// A lane holds `chunks` times `width` pairs. Chunks that begin beyond half the head are not there.
template <class T, int width, int chunks>
__global__ void __launch_bounds__(forward_threads, chunks == 1 ? 9 : 1)
    qk_norm_rope_forward(Heads<T> op) {
  const int lane = static_cast<int>(threadIdx.x) & (op.lanes - 1);
  const int half = op.head_dim / 2;
  const std::int64_t head = static_cast<std::int64_t>(blockIdx.x) * (forward_threads / op.lanes) +
                            static_cast<int>(threadIdx.x) / op.lanes;
  // Lanes without a head stay for the shuffles.
  const int held = head < op.count ? half : 0;
  const T* const x = op.x + head * op.head_dim;
  const auto at = [&](int c) { return (lane + c * op.lanes) * width; };

  // All loads from afar before the reduction, whose shuffles hide their latency.
  const Turn turn = held > 0 ? turn_of(op, position_of(op, head)) : Turn{};
  RawPairs<T, width> raw[chunks] = {};
  Pairs<width> angle[chunks] = {};
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (at(c) >= held) continue;
    raw[c] = load_raw_pairs<width>(x, half, at(c));
    angle[c] = load_pairs<width>(turn.row, half, at(c));  // cos, sin
  }
  float squares = 0;
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    const Pairs<width> values = raw[c].values();
#pragma unroll
    for (int i = 0; i < width; ++i) {
      squares = fmaf(values.first[i], values.first[i], squares);
      squares = fmaf(values.second[i], values.second[i], squares);
    }
  }
  squares = warp_sum(squares, op.lanes);
  if (held == 0) return;  // no shuffle follows
  float r = rsqrtf(squares / static_cast<float>(op.head_dim) + op.epsilon);
  if (lane == 0) store(op.inverse_rms + head, r);
  if (!turn.known) r = not_a_number;

#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (at(c) >= held) continue;
    const Pairs<width> values = raw[c].values();
    const Pairs<width> weight = load_pairs<width>(op.weight, half, at(c));  // of L1
    Pairs<width> out;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float a = values.first[i] * r * weight.first[i];
      const float b = values.second[i] * r * weight.second[i];
      out.first[i] = fmaf(a, angle[c].first[i], -b * angle[c].second[i]);
      out.second[i] = fmaf(a, angle[c].second[i], b * angle[c].first[i]);
    }
    store_pairs(op.y + head * op.head_dim, half, at(c), out);
  }
}

template <int width, int chunks>
struct HeadShares {
  float value[head_threads * 2 * width * chunks];
};

// What a lane reads of a head, as far as no other read comes first.
template <class T, int width, int chunks>
struct HeadInputs {
  RawPairs<T, width> x[chunks], d_y[chunks];
  int position;
  float inverse_rms;
};
template <int width, int chunks, class T, class At>
__device__ HeadInputs<T, width, chunks> load_head(const Heads<T>& op, std::int64_t head, int held,
                                                  const At& at) {
  HeadInputs<T, width, chunks> in{};
  if (held == 0) return in;
  in.position = position_of(op, head);
  in.inverse_rms = load(op.known_rms + head);
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (at(c) >= held) continue;
    in.x[c] = load_raw_pairs<width>(op.x + head * op.head_dim, held, at(c));
    in.d_y[c] = load_raw_pairs<width>(op.d_y + head * op.head_dim, held, at(c));
  }
  return in;
}

template <class T, int width, int chunks>
__global__ void __launch_bounds__(head_threads, chunks == 1 ? 2 : 1)
    qk_norm_rope_backward(Heads<T> op) {
  const int lane = static_cast<int>(threadIdx.x) & (op.lanes - 1);
  const int group = static_cast<int>(threadIdx.x) / op.lanes, groups = head_threads / op.lanes;
  const int half = op.head_dim / 2;
  const auto at = [&](int c) { return (lane + c * op.lanes) * width; };

  RawPairs<T, width> raw_weight[chunks] = {};
  Pairs<width> d_weight[chunks] = {};
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (at(c) < half) raw_weight[c] = load_raw_pairs<width>(op.weight, half, at(c));
  }

  const std::int64_t begin = blockIdx.x * op.strip;
  const std::int64_t end = begin + op.strip < op.count ? begin + op.strip : op.count;
  const auto held_of = [&](std::int64_t head) { return head < end ? half : 0; };
  const auto load_inputs = [&](std::int64_t head) {
    return load_head<width, chunks>(op, head, held_of(head), at);
  };
  HeadInputs<T, width, chunks> next = load_inputs(begin + group);
  // All groups take as many turns: lanes without a head stay for the shuffles.
#pragma unroll 1
  for (std::int64_t first = begin; first < end; first += groups) {
    const std::int64_t head = first + group;
    const int held = held_of(head);
    const HeadInputs<T, width, chunks> in = next;
    next = load_inputs(head + groups);
    const Turn turn = turn_of(op, in.position);
    const float r = turn.known ? in.inverse_rms : not_a_number;
    Pairs<width> x[chunks] = {}, h[chunks] = {};
    float dot = 0;
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      if (at(c) >= held) continue;
      const Pairs<width> d_y = in.d_y[c].values(), weight = raw_weight[c].values();
      const Pairs<width> angle = load_pairs<width>(turn.row, half, at(c));
      x[c] = in.x[c].values();
#pragma unroll
      for (int i = 0; i < width; ++i) {
        x[c].first[i] *= r, x[c].second[i] *= r;
        h[c].first[i] = fmaf(d_y.first[i], angle.first[i], d_y.second[i] * angle.second[i]);
        h[c].second[i] = fmaf(d_y.second[i], angle.first[i], -d_y.first[i] * angle.second[i]);
        const float to_first = h[c].first[i] * x[c].first[i];
        const float to_second = h[c].second[i] * x[c].second[i];
        dot = fmaf(to_first, weight.first[i], fmaf(to_second, weight.second[i], dot));
        d_weight[c].first[i] += to_first, d_weight[c].second[i] += to_second;
      }
    }
    const float mean = warp_sum(dot, op.lanes) / static_cast<float>(op.head_dim);
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      if (at(c) >= held) continue;
      const Pairs<width> weight = raw_weight[c].values();
      Pairs<width> out;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        out.first[i] = r * fmaf(-x[c].first[i], mean, h[c].first[i] * weight.first[i]);
        out.second[i] = r * fmaf(-x[c].second[i], mean, h[c].second[i] * weight.second[i]);
      }
      store_pairs(op.d_x + head * op.head_dim, half, at(c), out);
    }
  }

  if (op.partials == nullptr) return;
  auto& shares = shared_storage<HeadShares<width, chunks>>();  // [groups, head_dim]
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (at(c) >= half) continue;
    float* const share = shares.value + group * op.head_dim + at(c);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      share[i] = d_weight[c].first[i];
      share[half + i] = d_weight[c].second[i];
    }
  }
  __syncthreads();
  float* const partial = op.partials + static_cast<std::int64_t>(blockIdx.x) * op.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < op.head_dim; i += head_threads) {
    float total = 0;
    for (int k = 0; k < groups; ++k) total += shares.value[k * op.head_dim + i];
    store(partial + i, total);
  }
}

// 16 bytes in each half of the head, or, where alignment does not allow that, eight single elements.
template <class T>
constexpr int vector_lanes_limit = 32 * per_vector<T>;
constexpr int scalar_chunks = 8;

// `elements` of a half belong to one lane.
int lanes_for(int half, int elements) {
  int lanes = 1;
  while (lanes < 32 && lanes * elements < half) lanes *= 2;
  return lanes;
}

template <class T>
bool takes_vectors(const Heads<T>& op) {
  const int half = op.head_dim / 2;
  return half % per_vector<T> == 0 && half <= vector_lanes_limit<T> &&
         all_aligned(16, {op.x, op.weight, op.rotation, op.y, op.d_y, op.d_x});
}

template <class T, class Operation>
Heads<T> heads_of(const Operation& op) {
  const std::int64_t count = op.x.dim(0) * op.x.dim(1), head_dim = op.x.dim(2);
  constexpr std::int64_t limit = std::int64_t{1} << 31;
  require(count < limit, "QK-norm of {}: the GPU kernel counts tokens times heads in 31 bits",
          op.x.shape());
  require(head_dim <= 2 * 32 * scalar_chunks,
          "QK-norm of {}: the GPU kernel takes heads of up to {} elements", op.x.shape(),
          2 * 32 * scalar_chunks);
  return {.x = op.x.template data<T>(),
          .weight = op.weight.template data<T>(),
          .rotation = op.rotation.template data<float>(),
          .positions = op.positions.template data<std::int32_t>(),
          .count = count,
          .heads = static_cast<int>(op.x.dim(1)),
          .head_dim = static_cast<int>(head_dim),
          .max_positions = static_cast<int>(op.rotation.dim(0))};
}

template <class T, int width, int chunks>
void launch_forward(Stream& stream, Heads<T> op) {
  op.lanes = lanes_for(op.head_dim / 2, width);
  const std::int64_t per_block = forward_threads / op.lanes;
  launch(stream,
         {.kernel = "qk_norm_rope_forward",
          .grid = {static_cast<unsigned>((op.count + per_block - 1) / per_block)},
          .block = {forward_threads}},
         qk_norm_rope_forward<T, width, chunks>, op);
}

template <class T, int width, int chunks>
void launch_backward(Stream& stream, Heads<T> op, float* d_weight) {
  op.lanes = lanes_for(op.head_dim / 2, width);
  const std::int64_t groups = head_threads / op.lanes;
  // At most 1024 strips, of at least 8 turns.
  const std::int64_t turns =
      std::max<std::int64_t>(8, (op.count + groups * 1024 - 1) / (groups * 1024));
  op.strip = turns * groups;
  const std::int64_t strips = (op.count + op.strip - 1) / op.strip;
  if (d_weight != nullptr) {
    op.partials = reinterpret_cast<float*>(
        stream.workspace(static_cast<std::size_t>(strips * op.head_dim) * sizeof(float)));
  }
  launch(stream,
         {.kernel = "qk_norm_rope_backward",
          .grid = {static_cast<unsigned>(strips)},
          .block = {head_threads},
          .shared_bytes = sizeof(HeadShares<width, chunks>)},
         qk_norm_rope_backward<T, width, chunks>, op);
  if (d_weight != nullptr) {
    launch_sum_partials(stream, op.partials, 1, strips, op.head_dim, AddToTotal{d_weight});
  }
}

template <class T>
void forward(Stream& stream, const QkNormRopeForward& op) {
  Heads<T> heads = heads_of<T>(op);
  if (heads.count == 0 || heads.head_dim == 0) return;
  heads.y = op.y.data<T>();
  heads.inverse_rms = op.inverse_rms.data<float>();
  heads.epsilon = op.epsilon;
  (takes_vectors(heads) ? launch_forward<T, per_vector<T>, 1>
                        : launch_forward<T, 1, scalar_chunks>)(stream, heads);
}

template <class T>
void backward(Stream& stream, const QkNormRopeBackward& op) {
  Heads<T> heads = heads_of<T>(op);
  if (heads.count == 0 || heads.head_dim == 0) return;
  heads.known_rms = op.inverse_rms.data<float>();
  heads.d_y = op.d_y.data<T>();
  heads.d_x = op.d_x.data<T>();
  (takes_vectors(heads)
       ? launch_backward<T, per_vector<T>, 1>
       : launch_backward<T, 1, scalar_chunks>)(stream, heads, op.d_weight.data<float>());
}

}  // namespace

void register_qk_norm_rope(OperationTable& table) {
  table.add<QkNormRopeForward>([](Stream& stream, const QkNormRopeForward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { forward<T>(stream, op); });
  });
  table.add<QkNormRopeBackward>([](Stream& stream, const QkNormRopeBackward& op) {
    visit_float(op.x.dtype(), [&]<class T>(T) { backward<T>(stream, op); });
  });
}

}  // namespace orchard::GPU_NAMESPACE
