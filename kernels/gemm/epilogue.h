// Where a GEMM kernel's sums go: rounded once, with bias, onto what was there before; or through one of
// gemm.h's epilogues, which reads and writes up to three matrices instead of one. Sums that a kernel holds
// in the layout of mma then change lanes through shared memory: accesses fill lines of 128 bytes, and a few
// are under way at once. As do those of rows that are not whole quads, which no model has.
//
// What is written in more ways than one stands in a loop over a thread's sums that is not unrolled: unrolled,
// it was nine tenths of a kernel's code and of the time to compile it. Registers have no index, so that the
// loop's turns take theirs by branches that all lanes take alike (take_turn).
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/math.h"
#include "kernels/gpu/vector.h"
#include "kernels/ptx/convert.h"

namespace orchard::GPU_NAMESPACE {

// How c is written. Modes that cost a compare a quad are not worth an instance of the kernel each.
template <class T>
struct Epilogue {
  void* c;         // [m, n], f32 or bf16
  const T* bias;   // [n] or nullptr
  const T* other;  // [m, n] or nullptr
  T* pre;          // [m, n] or nullptr
  EpilogueKind kind;
  bool c_is_bf16;  // else f32; T with an epilogue
  bool add;        // to what c holds
  bool vectors;    // quads of columns are aligned to their size
};

inline bool is_aligned(const void* address, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

template <class T>
Epilogue<T> epilogue(const Tensor& c, const ConstTensor& bias, Accumulate accumulate,
                     const GemmEpilogue& function = {}) {
  const bool c_is_bf16 = c.dtype() == DType::bf16;
  const auto in_quads = [&](const void* rows) { return is_aligned(rows, c_is_bf16 ? 8 : 16); };
  return {.c = c.raw(),
          .bias = bias.data<T>(),
          .other = function.other.data<T>(),
          .pre = function.pre.data<T>(),
          .kind = function.kind,
          .c_is_bf16 = c_is_bf16,
          .add = accumulate == Accumulate::add,
          .vectors = c.dim(-1) % 4 == 0 && in_quads(c.raw()) && in_quads(function.other.raw()) &&
                     in_quads(function.pre.raw())};
}

struct Quad {
  float value[4];
};

__device__ inline Quad load_shared_quad(const float* address) {
  const float4 v = load_shared(reinterpret_cast<const float4*>(address));
  return {{v.x, v.y, v.z, v.w}};
}

__device__ inline Quad load_quad(const float* address) {
  const float4 v = load(reinterpret_cast<const float4*>(address));
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline Quad load_quad(const bf16* address) {
  const uint2 v = load(reinterpret_cast<const uint2*>(address));
  return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
           __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)}};
}
__device__ inline void store_quad(float* address, const Quad& v) {
  store(reinterpret_cast<float4*>(address), float4{v.value[0], v.value[1], v.value[2], v.value[3]});
}
__device__ inline void store_quad(bf16* address, const Quad& v) {
  store(reinterpret_cast<uint2*>(address),
        uint2{pack_bf16x2(v.value[0], v.value[1]), pack_bf16x2(v.value[2], v.value[3])});
}

template <class C>
__device__ void write_quad(C* c, bool add, bool vectors, int columns, Quad sums) {
  if (vectors) {
    if (add) {
      const Quad old = load_quad(c);
      for (int i = 0; i < 4; ++i) sums.value[i] += old.value[i];
    }
    return store_quad(c, sums);
  }
  for (int i = 0; i < 4; ++i) {
    if (i < columns)
      store(c + i, narrow<C>(add ? sums.value[i] + widen(load(c + i)) : sums.value[i]));
  }
}

// Four sums, of columns `col` on, with their bias.
template <class T>
__device__ Quad with_bias(const Epilogue<T>& out, int col, int n, Quad sums) {
  if (out.bias != nullptr) {
    for (int i = 0; i < 4; ++i) {
      if (col + i < n) sums.value[i] += widen(load_readonly(out.bias + col + i));
    }
  }
  return sums;
}

// Writes four sums with bias to the `at`th element of c on. For EpilogueKind::none.
template <class T>
__device__ void write_sums(const Epilogue<T>& out, std::int64_t at, bool vectors, int columns,
                           const Quad& sums) {
  if (out.c_is_bf16) {
    write_quad(static_cast<bf16*>(out.c) + at, out.add, vectors, columns, sums);
  } else {
    write_quad(static_cast<float*>(out.c) + at, out.add, vectors, columns, sums);
  }
}

// What an epilogue makes of v.
__device__ inline float finish(EpilogueKind kind, float v, float other) {
  switch (kind) {
    case EpilogueKind::none:
      break;
    case EpilogueKind::residual:
      return v + other;
    case EpilogueKind::quick_gelu:
      return v * sigmoid(1.702f * v);
    case EpilogueKind::silu_gate:
      return v * sigmoid(v) * other;
  }
  return v;
}

// Four elements of `other`, from the `at`th on, of which the row has `columns`.
template <class T>
__device__ Quad read_other(const Epilogue<T>& out, std::int64_t at, int columns) {
  Quad other{};
  if (out.other == nullptr || columns <= 0) return other;
  if (out.vectors) return load_quad(out.other + at);
  for (int i = 0; i < 4; ++i) {
    if (i < columns) other.value[i] = widen(load(out.other + at + i));
  }
  return other;
}

// Four sums with bias through the epilogue.
template <class T>
__device__ void finish_quad(const Epilogue<T>& out, std::int64_t at, int columns, Quad sums,
                            const Quad& other) {
  if (out.kind == EpilogueKind::none) return write_sums(out, at, out.vectors, columns, sums);
  for (float& v : sums.value) v = widen(narrow<T>(v));
  if (out.pre != nullptr) write_quad(out.pre + at, false, out.vectors, columns, sums);
  for (int i = 0; i < 4; ++i) sums.value[i] = finish(out.kind, sums.value[i], other.value[i]);
  write_quad(static_cast<T*>(out.c) + at, false, out.vectors, columns, sums);
}

// Four sums of one row of c [*, n], columns `col` on, through bias and epilogue; those beyond n are
// dropped. `row_begin` is the index of the row's first element.
template <class T>
__device__ void finish_sums(const Epilogue<T>& out, std::int64_t row_begin, int col, int n,
                            const Quad& sums) {
  if (col >= n) return;
  const std::int64_t at = row_begin + col;
  finish_quad(out, at, n - col, with_bias(out, col, n, sums), read_other(out, at, n - col));
}

// Where a warp's sums change lanes on their way through an epilogue. Rows begin eight banks apart: what
// lanes write as mma holds it, and read as quads, meets in no bank.
struct WarpStage {
  static constexpr int rows = 16, cols = 32;
  alignas(16) float sums[rows][cols + 8];
};

// A lane's four quads of what passes a stage at once.
struct StageQuads {
  static constexpr int count = 4, lanes_in_row = WarpStage::cols / 4;
  Quad quad[count];

  __device__ static int row(int i) {
    return static_cast<int>(threadIdx.x) % 32 / lanes_in_row + i * (WarpStage::rows / count);
  }
  __device__ static int col() { return static_cast<int>(threadIdx.x) % lanes_in_row * 4; }
};

// The lane's quads of `other`, for finish_stage at [row, col]: to be asked for in good time.
template <class T>
__device__ StageQuads read_others(const Epilogue<T>& out, const Work& work, int row, int col) {
  StageQuads others;
#pragma unroll
  for (int i = 0; i < StageQuads::count; ++i) {
    const int own_row = row + StageQuads::row(i), own_col = col + StageQuads::col();
    others.quad[i] = read_other(out, work.c + std::int64_t{own_row} * work.n + own_col,
                                own_row < work.m ? work.n - own_col : 0);
  }
  return others;
}

// Calls body(i) with i = turn, known to the compiler, of [0, turns).
template <int turns, class Body>
__device__ void take_turn(int turn, const Body& body) {
#pragma unroll
  for (int i = 0; i < turns; ++i) {
    if (i == turn) body(i);
  }
}

// Fills the warp's stage with four neighbouring mma tiles of it, [16, 8] each.
__device__ inline void fill_stage(WarpStage& stage, const float* tiles) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tile = 0; tile < WarpStage::cols / 8; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_shared(
          reinterpret_cast<float2*>(&stage.sums[lane / 4 + 8 * half][8 * tile + lane % 4 * 2]),
          float2{tiles[4 * tile + 2 * half], tiles[4 * tile + 2 * half + 1]});
    }
  }
}

// Writes what the warp's stage holds, whose first element is [row, col] of c, through the epilogue.
template <class T>
__device__ void finish_stage(const Epilogue<T>& out, const Work& work, const WarpStage& stage,
                             const StageQuads& others, int row, int col) {
  __syncwarp();
  const int own_col = col + StageQuads::col(), columns = work.n - own_col;
#pragma unroll
  for (int i = 0; i < StageQuads::count; ++i) {
    const int own_row = row + StageQuads::row(i);
    if (own_row >= work.m || columns <= 0) continue;
    const Quad sums = load_shared_quad(&stage.sums[StageQuads::row(i)][StageQuads::col()]);
    finish_quad(out, work.c + std::int64_t{own_row} * work.n + own_col, columns,
                with_bias(out, own_col, work.n, sums), others.quad[i]);
  }
  __syncwarp();  // before the stage is filled again
}

// Writes two neighbouring mma tiles of a warp, [16, 8] each, whose first element is [row, col] of c, where
// rows are whole quads and there is no epilogue. A lane has two columns of either tile; lanes exchange them
// in pairs, so that each has four columns of one: stores then fill whole 32-byte sectors.
template <class T>
__device__ void write_fragments(const Epilogue<T>& out, const Work& work, const float* left,
                                const float* right, int row, int col) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool odd = lane % 2 != 0;
  const int own_col = col + lane % 4 / 2 * 4 + (odd ? 8 : 0);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* const l = left + 2 * half;
    const float* const r = right + 2 * half;
    const float x = __shfl_xor_sync(all_lanes, odd ? l[0] : r[0], 1);
    const float y = __shfl_xor_sync(all_lanes, odd ? l[1] : r[1], 1);
    const int own_row = row + lane / 4 + 8 * half;
    if (own_row < work.m && own_col < work.n) {
      const Quad sums = odd ? Quad{{x, y, r[0], r[1]}} : Quad{{l[0], l[1], x, y}};
      write_sums(out, work.c + std::int64_t{own_row} * work.n + own_col, true, 4,
                 with_bias(out, own_col, own_col + 4, sums));
    }
  }
}

}  // namespace orchard::GPU_NAMESPACE
