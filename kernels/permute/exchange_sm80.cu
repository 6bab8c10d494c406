// Rows on their way between ranks on GPUs, from sm_80 on: copies of whole rows by warps, in the widest
// units that rows and addresses allow (kernels/gpu/copy_rows.h). Bytes: each moved byte once in and
// once out. Bound: HBM bandwidth.
#include <algorithm>
#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/gpu/copy_rows.h"
#include "kernels/gpu/grid.h"
#include "kernels/permute/exchange.h"
#include "kernels/permute/permute_gpu.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_threads = 256, block_warps = block_threads / 32;

// target[i] = source[i] for i below count, zeros where source is nullptr. All lanes of a warp call.
template <class Unit>
__device__ void copy_by_warp(Unit* target, const Unit* source, std::int64_t count) {
  constexpr int in_flight = 4;
  for (std::int64_t begin = threadIdx.x % 32; begin < count; begin += 32 * in_flight) {
    Unit held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      const std::int64_t at = begin + 32 * i;
      held[i] = source != nullptr && at < count ? load(source + at) : Unit{};
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (begin + 32 * i < count) store(target + begin + 32 * i, held[i]);
    }
  }
}

// ---- MapChoices --------------------------------------------------------------------------------

// A table of usual size comes to shared memory: its rows are mostly smaller than a sector, and neighbours
// take any of them.
struct StagedTable {
  static constexpr std::int64_t most = 1024;
  std::int32_t targets[most];
};

struct Mapping {
  const std::int32_t* experts;  // [tokens, k]
  const std::int32_t* table;    // [experts, parts]
  std::int32_t* targets;        // [tokens, slots]
  std::int64_t count;           // of targets
  std::int64_t table_size;
  int slots, parts;
  Repeats repeats;

  __device__ bool is_staged() const { return table_size <= StagedTable::most; }

  // Of the first choice's row to the last part's, in the order of the slot.
  __device__ std::int32_t target(std::int64_t i, const StagedTable& staged) const {
    const std::int32_t expert = load(experts + i / parts);
    if (expert < 0) return -1;
    const std::int64_t at = static_cast<std::int64_t>(expert) * parts + i % parts;
    return is_staged() ? load_shared(staged.targets + at) : load(table + at);
  }
};

// A block reads at most as much of the table as it has targets.
constexpr int mapped_by_thread = 4;
static_assert(StagedTable::most <= block_threads * mapped_by_thread);

__global__ void __launch_bounds__(block_threads) map_choices(Mapping op) {
  auto& staged = shared_storage<StagedTable>();
  for (int i = threadIdx.x; op.is_staged() && i < op.table_size; i += block_threads) {
    store_shared(staged.targets + i, load(op.table + i));
  }
  __syncthreads();
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * block_threads * mapped_by_thread + threadIdx.x;
#pragma unroll
  for (int n = 0; n < mapped_by_thread; ++n) {
    const std::int64_t i = first + n * block_threads;
    if (i >= op.count) return;
    const std::int32_t target = op.target(i, staged);
    bool repeated = false;
    if (op.repeats == Repeats::drop) {
      for (std::int64_t j = i - i % op.slots; j < i; ++j) {
        repeated |= op.target(j, staged) == target;
      }
    }
    store(op.targets + i, repeated ? -1 : target);
  }
}

void run_map_choices(Stream& stream, const MapChoices& op) {
  const Mapping mapping{.experts = op.experts.data<std::int32_t>(),
                        .table = op.table.data<std::int32_t>(),
                        .targets = op.targets.data<std::int32_t>(),
                        .count = op.targets.numel(),
                        .table_size = op.table.numel(),
                        .slots = int_extent("MapChoices", op.targets.dim(1)),
                        .parts = int_extent("MapChoices", op.table.dim(1)),
                        .repeats = op.repeats};
  if (mapping.count == 0) return;
  launch(stream,
         {.kernel = "map_choices",
          .grid = {blocks_for("map_choices", mapping.count, block_threads * mapped_by_thread)},
          .block = {block_threads},
          .shared_bytes = sizeof(StagedTable)},
         map_choices, mapping);
}

// ---- CopyRuns ----------------------------------------------------------------------------------

// blockIdx.x is the run; its rows are shared by the warps of gridDim.y blocks.
template <class Unit>
__global__ void __launch_bounds__(block_threads)
    copy_runs(const Unit* x, const std::int32_t* runs, Unit* y, std::int64_t units) {
  const std::int32_t* const run = runs + 3 * static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t from = load(run), to = load(run + 1), count = load(run + 2);
  const std::int64_t first = blockIdx.y * block_warps + threadIdx.x / 32;
  for (std::int64_t row = first; row < count; row += gridDim.y * block_warps) {
    copy_by_warp(y + (to + row) * units, from < 0 ? nullptr : x + (from + row) * units, units);
  }
}

void run_copy_runs(Stream& stream, const CopyRuns& op) {
  const std::int64_t runs = op.runs.dim(0);
  if (runs == 0 || op.y.numel() == 0) return;
  // The device alone knows how long the runs are: as many blocks as a run of twice the mean wants.
  const std::int64_t mean = ceil_div(op.y.dim(0), runs);
  const auto blocks =
      static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(2 * mean, block_warps), 1, 256));
  visit_unit<1>(row_bytes(op.y), {op.x.raw(), op.y.raw()},
                [&]<class Unit>(Unit, std::int64_t units) {
                  launch(stream,
                         {.kernel = "copy_runs",
                          .grid = {blocks_for("copy_runs", runs, 1), blocks},
                          .block = {block_threads}},
                         copy_runs<Unit>, static_cast<const Unit*>(op.x.raw()),
                         op.runs.data<std::int32_t>(), static_cast<Unit*>(op.y.raw()), units);
                });
}

// ---- PackRows, UnpackRows ----------------------------------------------------------------------

// Where things are in a packed row, in bytes: the row, its targets, the end.
struct PackedLayout {
  std::int64_t row_bytes, targets_offset, packed_bytes;
  std::int64_t slots;
};

PackedLayout layout_of(const ConstTensor& x, const ConstTensor& targets,
                       const ConstTensor& packed) {
  return {.row_bytes = row_bytes(x),
          .targets_offset = packed_targets_offset(x.dim(1), x.dtype()),
          .packed_bytes = packed.dim(1),
          .slots = targets.dim(1)};
}

__device__ inline std::int64_t row_of_warp() {
  return static_cast<std::int64_t>(blockIdx.x) * block_warps + threadIdx.x / 32;
}

// The bytes between the row and its targets, and those after them, become zeros: what is sent is
// then defined to the last byte.
template <class Unit>
__global__ void __launch_bounds__(block_threads)
    pack_rows(const Unit* x, const std::int32_t* targets, const std::int32_t* source,
              std::byte* packed, std::int64_t rows, PackedLayout layout) {
  const std::int64_t row = row_of_warp();
  if (row >= rows) return;
  const std::int64_t token = load(source + row);
  const std::int64_t units = layout.row_bytes / static_cast<std::int64_t>(sizeof(Unit));
  std::byte* const to = packed + row * layout.packed_bytes;
  copy_by_warp(reinterpret_cast<Unit*>(to), x + token * units, units);
  // Rows of floats are of an even number of bytes, all else of whole words.
  using Half = unsigned short;
  copy_by_warp<Half>(reinterpret_cast<Half*>(to + layout.row_bytes), nullptr,
                     (layout.targets_offset - layout.row_bytes) / 2);
  auto* const words = reinterpret_cast<std::int32_t*>(to + layout.targets_offset);
  copy_by_warp(words, targets + token * layout.slots, layout.slots);
  copy_by_warp<std::int32_t>(words + layout.slots, nullptr,
                             (layout.packed_bytes - layout.targets_offset) / 4 - layout.slots);
}

template <class Unit>
__global__ void __launch_bounds__(block_threads)
    unpack_rows(const std::byte* packed, Unit* x, std::int32_t* targets, std::int64_t rows,
                PackedLayout layout) {
  const std::int64_t row = row_of_warp();
  if (row >= rows) return;
  const std::int64_t units = layout.row_bytes / static_cast<std::int64_t>(sizeof(Unit));
  const std::byte* const from = packed + row * layout.packed_bytes;
  copy_by_warp(x + row * units, reinterpret_cast<const Unit*>(from), units);
  copy_by_warp(targets + row * layout.slots,
               reinterpret_cast<const std::int32_t*>(from + layout.targets_offset), layout.slots);
}

void run_pack_rows(Stream& stream, const PackRows& op) {
  const std::int64_t rows = op.packed.dim(0);
  if (rows == 0) return;
  const PackedLayout layout = layout_of(op.x, op.targets, op.packed);
  visit_unit(layout.row_bytes, {op.x.raw(), op.packed.raw()}, [&]<class Unit>(Unit, std::int64_t) {
    launch(stream,
           {.kernel = "pack_rows",
            .grid = {blocks_for("pack_rows", rows, block_warps)},
            .block = {block_threads}},
           pack_rows<Unit>, static_cast<const Unit*>(op.x.raw()), op.targets.data<std::int32_t>(),
           op.source.data<std::int32_t>(), static_cast<std::byte*>(op.packed.raw()), rows, layout);
  });
}

void run_unpack_rows(Stream& stream, const UnpackRows& op) {
  const std::int64_t rows = op.x.dim(0);
  if (rows == 0) return;
  const PackedLayout layout = layout_of(op.x, op.targets, op.packed);
  visit_unit(layout.row_bytes, {op.x.raw(), op.packed.raw()}, [&]<class Unit>(Unit, std::int64_t) {
    launch(stream,
           {.kernel = "unpack_rows",
            .grid = {blocks_for("unpack_rows", rows, block_warps)},
            .block = {block_threads}},
           unpack_rows<Unit>, static_cast<const std::byte*>(op.packed.raw()),
           static_cast<Unit*>(op.x.raw()), op.targets.data<std::int32_t>(), rows, layout);
  });
}

}  // namespace

void register_exchange(OperationTable& table) {
  table.add<MapChoices>(run_map_choices);
  table.add<CopyRuns>(run_copy_runs);
  table.add<PackRows>(run_pack_rows);
  table.add<UnpackRows>(run_unpack_rows);
}

}  // namespace orchard::GPU_NAMESPACE
