// The plan of a permutation on the CPU: a counting sort by expert, stable in the token. Serial: it
// touches 12 bytes per choice, where the moves it plans touch a whole row each.
#include <algorithm>

#include "kernels/cpu/indices.h"
#include "kernels/device/device.h"
#include "kernels/permute/permute.h"
#include "kernels/permute/permute_cpu.h"

namespace orchard::cpu {
namespace {

void permute_plan(Stream& stream, const PermutePlan& op) {
  const std::int64_t tokens = op.experts.dim(0), k = op.experts.dim(1);
  const std::int64_t experts = op.row_offsets.dim(0) - 1, max_rows = op.source.dim(0);
  check_indices("PermutePlan", "experts", op.experts, -1, experts);
  const std::int32_t* const expert = op.experts.data<std::int32_t>();
  std::int32_t* const offsets = op.row_offsets.data<std::int32_t>();
  std::int32_t* const source = op.source.data<std::int32_t>();
  std::int32_t* const slot = op.slot.data<std::int32_t>();
  auto* const next = reinterpret_cast<std::int32_t*>(  // row of each expert's next token
      stream.workspace(static_cast<std::size_t>(experts) * sizeof(std::int32_t)));

  std::fill_n(next, experts, 0);
  for (std::int64_t i = 0; i < tokens * k; ++i) {
    if (expert[i] >= 0) ++next[expert[i]];
  }
  std::int64_t rows = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t count = next[e];
    next[e] = offsets[e] = static_cast<std::int32_t>(rows);
    require(op.group_rows == 0 || count <= op.group_rows,
            "PermutePlan: expert {} of {} has {} choices, but groups have {} rows", e, experts,
            count, op.group_rows);
    rows +=
        op.group_rows > 0 ? op.group_rows : (count + op.multiple - 1) / op.multiple * op.multiple;
    require(rows <= max_rows,
            "PermutePlan: experts 0 ... {} of {} need {} rows, source has {}; max_expert_rows "
            "gives a number that always suffices",
            e, experts, rows, max_rows);
  }
  offsets[experts] = static_cast<std::int32_t>(rows);
  std::fill_n(source, max_rows, -1);
  for (std::int64_t i = 0; i < tokens * k; ++i) {
    slot[i] = expert[i] >= 0 ? next[expert[i]]++ : -1;
    if (slot[i] >= 0) source[slot[i]] = static_cast<std::int32_t>(i / k);
  }
}

}  // namespace

void register_permute_plan(OperationTable& table) {
  table.add<PermutePlan>(permute_plan);
}

}  // namespace orchard::cpu
