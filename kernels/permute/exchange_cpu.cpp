// Rows on their way between ranks, on the CPU: copies of whole rows, split over the threads by rows.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/indices.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device/device.h"
#include "kernels/permute/exchange.h"
#include "kernels/permute/permute_cpu.h"

namespace orchard::cpu {
namespace {

constexpr std::int64_t token_grain = 256, row_grain = 32;

std::size_t row_bytes(const ConstTensor& rows) {
  return static_cast<std::size_t>(rows.shape().numel() / std::max<std::int64_t>(rows.dim(0), 1)) *
         size_of(rows.dtype());
}

void map_choices(Stream&, const MapChoices& op) {
  const std::int64_t k = op.experts.dim(1), parts = op.table.dim(1);
  check_indices("MapChoices", "experts", op.experts, -1, op.table.dim(0));
  const auto* const table = op.table.data<std::int32_t>();
  parallel_for(op.experts.dim(0), token_grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int32_t* const experts = op.experts.data<std::int32_t>() + t * k;
      std::int32_t* const targets = op.targets.data<std::int32_t>() + t * k * parts;
      for (std::int64_t i = 0; i < k * parts; ++i) {
        const std::int32_t expert = experts[i / parts];
        const std::int32_t target = expert < 0 ? -1 : table[expert * parts + i % parts];
        const bool repeated =
            op.repeats == Repeats::drop && std::find(targets, targets + i, target) != targets + i;
        targets[i] = repeated ? -1 : target;
      }
    }
  });
}

struct Run {
  std::int64_t from, to, count;
};

Run run_at(const ConstTensor& runs, std::int64_t i) {
  const std::int32_t* const run = runs.data<std::int32_t>() + 3 * i;
  return {run[0], run[1], run[2]};
}

void copy_runs(Stream& stream, const CopyRuns& op) {
  const std::int64_t runs = op.runs.dim(0);
  // Rows of all runs before each: where the threads' shares begin and end.
  auto* const before = reinterpret_cast<std::int64_t*>(
      stream.workspace(static_cast<std::size_t>(runs + 1) * sizeof(std::int64_t)));
  before[0] = 0;
  for (std::int64_t i = 0; i < runs; ++i) {
    const Run run = run_at(op.runs, i);
    require(run.count >= 0 && run.from >= -1 &&
                (run.from < 0 || run.from + run.count <= op.x.dim(0)) && run.to >= 0 &&
                run.to + run.count <= op.y.dim(0),
            "CopyRuns: run {} takes {} rows from {} to {}, x has {}, y {}", i, run.count, run.from,
            run.to, op.x.dim(0), op.y.dim(0));
    before[i + 1] = before[i] + run.count;
  }
  const std::size_t bytes = row_bytes(op.y);
  const auto* const x = static_cast<const std::byte*>(op.x.raw());
  auto* const y = static_cast<std::byte*>(op.y.raw());
  parallel_for(before[runs], row_grain, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t i = std::upper_bound(before, before + runs + 1, begin) - before - 1;
    for (; i < runs && before[i] < end; ++i) {
      const Run run = run_at(op.runs, i);
      const std::int64_t skipped = std::max(begin - before[i], std::int64_t{0});
      const std::int64_t count = std::min(end, before[i + 1]) - before[i] - skipped;
      std::byte* const to = y + static_cast<std::size_t>(run.to + skipped) * bytes;
      const auto copied = static_cast<std::size_t>(count) * bytes;
      if (run.from < 0) {
        std::memset(to, 0, copied);
      } else {
        std::memcpy(to, x + static_cast<std::size_t>(run.from + skipped) * bytes, copied);
      }
    }
  });
}

// Copies that fill in the bytes between the row and its targets, and after them, with zeros: what is
// sent is then defined to the last byte.
void pack_rows(Stream&, const PackRows& op) {
  const std::int64_t rows = op.packed.dim(0);
  const ConstTensor used = op.source.slice(0, rows);
  check_indices("PackRows", "source", used, 0, op.x.dim(0));
  const std::size_t x_bytes = row_bytes(op.x), target_bytes = row_bytes(op.targets);
  const auto offset = static_cast<std::size_t>(packed_targets_offset(op.x.dim(1), op.x.dtype()));
  const std::size_t packed_bytes = row_bytes(op.packed);
  parallel_for(rows, row_grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const auto token = static_cast<std::size_t>(used.data<std::int32_t>()[r]);
      std::byte* const to =
          static_cast<std::byte*>(op.packed.raw()) + static_cast<std::size_t>(r) * packed_bytes;
      std::memcpy(to, static_cast<const std::byte*>(op.x.raw()) + token * x_bytes, x_bytes);
      std::memset(to + x_bytes, 0, packed_bytes - x_bytes);
      std::memcpy(to + offset,
                  static_cast<const std::byte*>(op.targets.raw()) + token * target_bytes,
                  target_bytes);
    }
  });
}

void unpack_rows(Stream&, const UnpackRows& op) {
  const std::size_t x_bytes = row_bytes(op.x), target_bytes = row_bytes(op.targets);
  const auto offset = static_cast<std::size_t>(packed_targets_offset(op.x.dim(1), op.x.dtype()));
  const std::size_t packed_bytes = row_bytes(op.packed);
  parallel_for(op.x.dim(0), row_grain, [&](std::int64_t begin, std::int64_t end) {
    for (auto r = static_cast<std::size_t>(begin); r < static_cast<std::size_t>(end); ++r) {
      const std::byte* const from =
          static_cast<const std::byte*>(op.packed.raw()) + r * packed_bytes;
      std::memcpy(static_cast<std::byte*>(op.x.raw()) + r * x_bytes, from, x_bytes);
      std::memcpy(static_cast<std::byte*>(op.targets.raw()) + r * target_bytes, from + offset,
                  target_bytes);
    }
  });
}

}  // namespace

void register_exchange(OperationTable& table) {
  table.add<MapChoices>(map_choices);
  table.add<CopyRuns>(copy_runs);
  table.add<PackRows>(pack_rows);
  table.add<UnpackRows>(unpack_rows);
}

}  // namespace orchard::cpu
