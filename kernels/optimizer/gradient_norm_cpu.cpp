// The norm of a gradient and its scale on the CPU: a few hundred additions.
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/device/device.h"
#include "kernels/optimizer/gradient_norm.h"
#include "kernels/optimizer/optimizer_cpu.h"

namespace orchard::cpu {
namespace {

void sum_in_order(Stream&, const SumInOrder& op) {
  const auto* const terms = op.terms.data<float>();
  const double sum = std::accumulate(terms, terms + op.terms.numel(), 0.0);
  *op.sum.data<std::int64_t>() = std::bit_cast<std::int64_t>(sum);
}

void clip_by_norm(Stream&, const ClipByNorm& op) {
  const auto* const squares = op.squares.data<std::int64_t>();
  double sum = 0;
  for (std::int64_t i = 0; i < op.squares.numel(); ++i) sum += std::bit_cast<double>(squares[i]);
  const double norm = std::sqrt(sum);
  double scale = 1;
  if (op.clip_norm > 0 && norm > op.clip_norm) scale = op.clip_norm / norm;
  if (!std::isfinite(norm)) scale = std::numeric_limits<double>::quiet_NaN();
  *op.norm.data<std::int64_t>() = std::bit_cast<std::int64_t>(norm);
  *op.scale.data<float>() = static_cast<float>(scale);
}

}  // namespace

void register_gradient_norm(OperationTable& table) {
  table.add<SumInOrder>(sum_in_order);
  table.add<ClipByNorm>(clip_by_norm);
}

}  // namespace orchard::cpu
