// The plan of a permutation on GPUs, from sm_80 on: a stable counting sort of the choices by expert
// (kernels/gpu/counting_sort.h). Bytes: 12 per choice, whose expert two launches read, and 4 per row of
// the buffer, where the moves it plans touch a whole row each. Bound: the latency of its launches.
#include "kernels/device/scratch.h"
#include "kernels/device/stream.h"
#include "kernels/gpu/counting_sort.h"
#include "kernels/permute/permute.h"
#include "kernels/permute/permute_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

struct ExpertOf {
  const std::int32_t* experts;
  __device__ int operator()(int choice) const { return load(experts + choice); }
};

struct PlaceChoice {
  std::int32_t* source;
  std::int32_t* slot;
  int k;
  int places;  // rows
  __device__ void write(int choice, int row) const {
    store(slot + choice, row);
    if (row >= 0) store(source + row, choice / k);
  }
  __device__ void fill(int row) const { store(source + row, -1); }  // padding
};

void permute_plan(Stream& stream, const PermutePlan& op) {
  const std::int64_t tokens = op.experts.dim(0), k = op.experts.dim(1);
  const std::int64_t experts = op.row_offsets.dim(0) - 1;
  require(experts <= max_buckets, "PermutePlan: {} experts, GPU kernels take at most {}", experts,
          max_buckets);
  // The counts are known on the device alone, and it cannot refuse: the worst case must fit.
  const std::int64_t most = op.group_rows > 0 ? experts * op.group_rows
                                              : max_expert_rows(tokens, k, experts, op.multiple);
  require(op.source.dim(0) >= most,
          "PermutePlan: source has {} rows, a GPU takes no fewer than {}: {}", op.source.dim(0),
          op.group_rows > 0 ? "all groups have" : "max_expert_rows", most);
  const int items = int_extent("PermutePlan", tokens * k);
  ScratchLayout layout;
  const auto counts = layout.add<std::int32_t>(sort_blocks(items) * experts);
  const auto ends = layout.add<std::int32_t>(experts);
  std::byte* const scratch = stream.workspace(layout.bytes());
  counting_sort(stream, "permute_plan",
                {.items = items,
                 .buckets = static_cast<int>(experts),
                 .multiple = int_extent("PermutePlan", op.multiple),
                 .bucket_size = int_extent("PermutePlan", op.group_rows),
                 .counts = counts.in(scratch),
                 .bucket_begin = op.row_offsets.data<std::int32_t>(),
                 .bucket_end = ends.in(scratch)},
                ExpertOf{op.experts.data<std::int32_t>()},
                PlaceChoice{op.source.data<std::int32_t>(), op.slot.data<std::int32_t>(),
                            static_cast<int>(k), int_extent("PermutePlan", op.source.dim(0))});
}

}  // namespace

void register_permute_plan(OperationTable& table) {
  table.add<PermutePlan>(permute_plan);
}

}  // namespace orchard::GPU_NAMESPACE
