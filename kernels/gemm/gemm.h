// Matrix products. Every weight of the model is stored [out, in], so a linear layer is
//   forward          y [rows, out]   = x [rows, in]  · w^T         (transpose_b)
//   input gradient   d_x [rows, in]  = d_y [rows, out] · w
//   weight gradient  d_w [out, in]  += d_y^T · x                   (transpose_a, accumulate)
//
// dtypes: a and b are both f32 or both bf16; c is f32, or bf16 when a and b are. Products of bf16
// accumulate in fp32 and round once at the end. FLOPs 2·m·n·k; bytes (m·k + k·n + m·n) elements;
// bound by compute for k > 64.
//
// On the CPU each tile of rows is computed by one thread, and the cut depends on the shape alone:
// results are bit-equal for any number of threads. What computes a tile is chosen by CPU and dtype
// (gemm_table in peak.h prints it); the environment variable ORCHARD_GEMM overrides:
//   auto      the default: onednn where it has kernels; else sgemm on x86, openblas on other CPUs
//   onednn    oneDNN's batch-reduce kernels (f32: AVX-512; bf16: AVX512-BF16), else sgemm
//   sgemm     oneDNN's sgemm, in f32; bf16 is widened
//   openblas  OpenBLAS's sgemm, in f32; bf16 is widened. Loaded at run time, an error when missing
// The kernels allocate nothing once warm; both sgemms keep buffers of their own.
//
// On a GPU bf16 runs on the tensor cores, f32 in full fp32. A tile of c is summed by one block in the
// order of k; where tiles are few and k is long, by one block a slice of k, and the slices are added in
// their order, in fp32, from the stream's workspace (at most two tiles a block that the GPU runs at
// once). How many slices follows from the shape and the number of SMs: results are bit-equal on
// repetition, not between GPUs of different size. Operands whose rows do not begin on 16 bytes are read
// element by element, which is several times slower. ORCHARD_GPU_GEMM chooses the kernel for bf16: auto
// (the default: by GPU and shape), sm80_64, sm80_128, sm90_128, sm90_256 (tensor cores of that
// generation, side of the tiles); one that does not take the operands gives way to one that does.
// With cublaslt single products without an epilogue, f32 too, are NVIDIA's cuBLASLt's where it takes
// them: loaded at run time, an error when missing.
// Grouped products find their groups on the device: the host reads no offsets, and does not check them.
#pragma once

#include "kernels/core/tensor.h"

namespace orchard {

class Stream;

enum class Transpose : std::uint8_t { no, yes };
enum class Accumulate : std::uint8_t { overwrite, add };

// What becomes of each element v of a product on its way to c. v is the sum with bias, rounded to c's
// dtype, and what is computed from it is rounded once more: the bits of the product followed by the
// pointwise operation, without v's way back from memory.
enum class EpilogueKind : std::uint8_t {
  none,        // c = v
  residual,    // c = v + other                 as Add
  quick_gelu,  // c = v · sigmoid(1.702 v)      as ActivationForward
  silu_gate,  // c = v · sigmoid(v) · other    as SwiGluForward, v the gate and other the up projection
};

// All tensors have c's shape and dtype, which is then a's; none overlaps another or c. There is no
// accumulating beside an epilogue.
struct GemmEpilogue {
  EpilogueKind kind = EpilogueKind::none;
  ConstTensor other = {};  // where the kind names it
  Tensor pre = {};         // v, for the backward of quick_gelu or silu_gate; absent: not wanted
};

// c [m, n] = op(a) [m, k] · op(b) [k, n] (+ bias [n]) (+ c when accumulating), through the epilogue. k = 0
// yields zeros or leaves c.
//
// Or a batch of such products: a, b and c then all have a first dimension more, of the same extent. The
// bias is one for all, the epilogue's tensors have c's shape. A GPU does not cut a batch's k in slices.
struct Gemm {
  ConstTensor a;  // [(batch,) m, k], or [(batch,) k, m] when transpose_a
  ConstTensor b;  // [(batch,) k, n], or [(batch,) n, k] when transpose_b
  Tensor c;       // [(batch,) m, n]
  Transpose transpose_a = Transpose::no;
  Transpose transpose_b = Transpose::no;
  Accumulate accumulate = Accumulate::overwrite;
  ConstTensor bias = {};  // [n], dtype of a; absent: none
  GemmEpilogue epilogue = {};
};

void run(Stream&, const Gemm&);

// What the shapes of a and c say.
struct GemmSizes {
  std::int64_t m, n, k;
  std::int64_t batch;  // 1 where there is no such dimension
};

inline GemmSizes sizes_of(const Gemm& op) {
  return {.m = op.c.dim(-2),
          .n = op.c.dim(-1),
          .k = op.a.dim(op.transpose_a == Transpose::yes ? -2 : -1),
          .batch = op.c.rank() == 3 ? op.c.dim(0) : 1};
}

// The experts' products. Rows of group g are [row_offsets[g], row_offsets[g + 1]); offsets are
// multiples of 32 (kernels/permute pads with zero rows), so that only a handful of shapes ever
// occur. Rows at or after row_offsets[groups] are neither read nor written, of the epilogue's tensors
// too. Empty groups are legal.
//
// An operand of tokens need not be in the groups' order: with `source` (kernels/permute's plan) row r is
// that of token source[r], and zeros where source[r] is -1. The result has the bits of copying the rows
// first (DispatchForward), and no copy is made. source at or after row_offsets[groups] is not read; the
// rest names tokens, which the CPU checks and GPUs do not.
//   c[rows of g] [*, n] = a[rows of g] [*, k] · op(b[g]), through the epilogue
struct GroupedGemm {
  ConstTensor a;            // [max_rows, k], with source [tokens, k]
  ConstTensor b;            // [groups, k, n], or [groups, n, k] when transpose_b
  Tensor c;                 // [max_rows, n]
  ConstTensor row_offsets;  // i32 [groups + 1], on the stream's device
  ConstTensor source = {};  // i32 [max_rows], of a's rows; absent: they are in order
  Transpose transpose_b = Transpose::no;
  Accumulate accumulate = Accumulate::overwrite;
  GemmEpilogue epilogue = {};
};

void run(Stream&, const GroupedGemm&);

// d_b[g] [m, n] += a[rows of g]^T [m, *] · b[rows of g] [*, n], in fp32. An empty group leaves
// d_b[g] as it is.
struct GroupedGemmWeightGradient {
  ConstTensor a;            // [max_rows, m]
  ConstTensor b;            // [max_rows, n], with source [tokens, n]
  Tensor d_b;               // f32 [groups, m, n]
  ConstTensor row_offsets;  // i32 [groups + 1]
  ConstTensor source = {};  // i32 [max_rows], of b's rows; absent: they are in order
};

void run(Stream&, const GroupedGemmWeightGradient&);

}  // namespace orchard
