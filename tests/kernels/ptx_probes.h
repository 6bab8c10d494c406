// What one warp gets from one instruction, on the emulator and on a GPU.
#pragma once

#include "kernels/device/device.h"

namespace orchard {

// Registers as i32, of lane 0, lane 1, ...
struct MmaProbe {
  ConstTensor a;  // i32 [32, 4]
  ConstTensor b;  // i32 [32, 2]
  Tensor d;       // f32 [32, 4], in and out
};

// Of 32 rows of 8 elements that count from 0 on, lane l brings the address of one.
struct LoadMatrixProbe {
  int matrices;
  bool transposed;
  ConstTensor row_of_lane;  // i32 [32]
  Tensor registers;         // i32 [32, matrices]
};

// Lane l copies `bytes` bytes, of which it reads l % (bytes + 1).
struct CopyProbe {
  int bytes;
  ConstTensor in;  // u8 [32, bytes]
  Tensor out;      // u8 [32, bytes]
};

// One warpgroup multiplies [64, 64] by [64, n] from operands that TMA brought: rows of what is
// contiguous, as in memory.
struct WgmmaProbe {
  int n;              // 64, 128 or 256
  bool a_transposed;  // a is bf16 [64 (k), 64 (m)], else [64 (m), 64 (k)]
  bool b_transposed;  // b is bf16 [64 (k), n], else [n, 64 (k)]
  ConstTensor a, b;
  int a_col = 0;  // where the box of a begins, along its rows: zeros come from outside
  Tensor d;       // f32 [64, n], in and out
};

namespace simt {
void run_probe(Stream&, const MmaProbe&);
void run_probe(Stream&, const LoadMatrixProbe&);
void run_probe(Stream&, const CopyProbe&);
void run_probe(Stream&, const WgmmaProbe&);
}  // namespace simt

#ifdef ORCHARD_HAS_CUDA
namespace cuda {
void run_probe(Stream&, const MmaProbe&);
void run_probe(Stream&, const LoadMatrixProbe&);
void run_probe(Stream&, const CopyProbe&);
void run_probe(Stream&, const WgmmaProbe&);
}  // namespace cuda
#endif

}  // namespace orchard
