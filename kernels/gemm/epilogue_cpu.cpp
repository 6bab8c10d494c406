// The epilogues of the CPU's matrix products: the pointwise operations themselves, over c. The last tiles
// of a product are still in the cache; a pass over the rest is small beside a product of any depth.
#include "kernels/activation/activation.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm_cpu.h"

namespace orchard::cpu {

void run_epilogue(Stream& stream, const GemmEpilogue& epilogue, Tensor c) {
  if (c.numel() == 0) return;
  const Tensor v = product_result(epilogue, c);
  const auto rows_of = [](const auto& x) { return x.reshape({x.numel() / x.dim(-1), x.dim(-1)}); };
  switch (epilogue.kind) {
    case EpilogueKind::none:
      return;
    case EpilogueKind::residual:
      return run(stream, Add{.a = v, .b = epilogue.other, .y = c});
    case EpilogueKind::quick_gelu:
      return run(stream, ActivationForward{.kind = Activation::quick_gelu, .x = v, .y = c});
    case EpilogueKind::silu_gate:
      return run(stream,
                 SwiGluForward{.gate = rows_of(v), .up = rows_of(epilogue.other), .y = rows_of(c)});
  }
}

}  // namespace orchard::cpu
