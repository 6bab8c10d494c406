// Row gathers and scatters on GPUs, from sm_80 on.
//
// Bytes: 2·e per element of e bytes that is moved; the table gradient 8 + e per element of the rows
// that tokens name, and about 50 bytes per token for the order of the sums. Bound: HBM bandwidth.
//
// Gathers are copies of rows (kernels/gpu/copy_rows.h). Scatters gather, too, through the inverse of
// their indices, so that each row is written once. The table gradient adds the rows of one id in
// token order, as the CPU does, bit for bit: token numbers are sorted by id, stably, and one warp
// owns all tokens of an id in its columns.
#include <bit>

#include "kernels/core/visit.h"
#include "kernels/device/device.h"
#include "kernels/device/scratch.h"
#include "kernels/embedding/embedding.h"
#include "kernels/embedding/embedding_gpu.h"
#include "kernels/gpu/copy_rows.h"
#include "kernels/gpu/counting_sort.h"
#include "kernels/gpu/pieces.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr int block_threads = 256;

// ---- gathers ---------------------------------------------------------------------------------

// The rows of a table that are here, by their ids.
struct TableRows {
  int first_id, count;
  // Row of an id, -1 where it is another rank's.
  __device__ int operator()(int id) const {
    const int row = id - first_id;
    return row >= 0 && row < count ? row : -1;
  }
};

TableRows rows_of(std::string_view operation, const VocabularyShard& shard,
                  const ConstTensor& table) {
  return {int_extent(operation, shard.first_id), int_extent(operation, table.dim(0))};
}

template <class Unit>
struct TokenRows {
  const Unit* table;
  const Unit* visual;
  const std::int32_t* sources;
  std::int64_t units;  // of a row
  __device__ const Unit* operator()(std::int64_t token) const {
    const std::int64_t source = load(sources + token);
    return source >= 0 ? table + source * units : visual + (-1 - source) * units;
  }
};

// Nothing, for tokens that are other ranks'.
template <class Unit>
struct ShardedTokenRows {
  TokenRows<Unit> all;  // `visual` may be nullptr
  TableRows rows;
  std::int64_t units;
  __device__ const Unit* operator()(std::int64_t token) const {
    const std::int64_t source = load(all.sources + token);
    if (source < 0) return all.visual == nullptr ? nullptr : all.visual + (-1 - source) * units;
    const std::int64_t row = rows(static_cast<int>(source));
    return row < 0 ? nullptr : all.table + row * units;
  }
};

void embedding_forward(Stream& stream, const EmbeddingForward& op) {
  visit_unit(row_bytes(op.y), {op.table.raw(), op.visual.raw(), op.y.raw()},
             [&]<class Unit>(Unit, std::int64_t units) {
               const TokenRows<Unit> rows{static_cast<const Unit*>(op.table.raw()),
                                          static_cast<const Unit*>(op.visual.raw()),
                                          op.sources.data<std::int32_t>(), units};
               auto* const y = static_cast<Unit*>(op.y.raw());
               if (op.shard.vocabulary == 0) {
                 launch_copy_rows(stream, "embedding", rows, y, op.y.dim(0));
               } else {
                 launch_copy_rows(stream, "embedding_of_shard",
                                  ShardedTokenRows<Unit>{
                                      rows, rows_of("EmbeddingForward", op.shard, op.table), units},
                                  y, op.y.dim(0));
               }
             });
}

void gather_rows(Stream& stream, const GatherRows& op) {
  copy_gathered_rows(stream, "gather_rows", op.x, op.indices.data<std::int32_t>(), 0, op.y);
}

// ---- scatters --------------------------------------------------------------------------------

enum class RowNames : std::uint8_t {
  indices,  // row index, -1: none
  sources,  // visual row -1 - source
};

// inverse[row of i] = 1 + i. Rows that no i names stay as they are: zero.
__global__ void __launch_bounds__(block_threads)
    invert(const std::int32_t* names, RowNames kind, int count, std::int32_t* inverse) {
  const int i = static_cast<int>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  const int name = load(names + i), row = kind == RowNames::indices ? name : -1 - name;
  if (row >= 0) store(inverse + row, 1 + i);
}

// y[row of i] = x[i], zeros in the rows that no i names.
void scatter(Stream& stream, const char* name, const ConstTensor& x, const ConstTensor& names,
             RowNames kind, const Tensor& y) {
  const std::int64_t rows = y.dim(0), count = names.dim(0);
  const Tensor inverse(stream.workspace(static_cast<std::size_t>(rows) * sizeof(std::int32_t)),
                       DType::i32, {rows}, stream.device().kind());
  stream.fill_zero(inverse);
  if (count > 0 && rows > 0) {
    launch(stream,
           {.kernel = "invert",
            .grid = {blocks_for("invert", count, block_threads)},
            .block = {block_threads}},
           invert, names.data<std::int32_t>(), kind, int_extent(name, count),
           inverse.data<std::int32_t>());
  }
  copy_gathered_rows(stream, name, x, inverse.data<std::int32_t>(), 1, y);
}

void scatter_rows(Stream& stream, const ScatterRows& op) {
  scatter(stream, "scatter_rows", op.x, op.indices, RowNames::indices, op.y);
}

// ---- the table gradient ----------------------------------------------------------------------

// What the tokens add to: table rows, and one row more, which stands for all that is not in the
// table, visual tokens and other ranks' ids.
struct TokenTargets {
  const std::int32_t* ids;  // [tokens]
  TableRows rows;
  __device__ int operator()(int token) const {
    const int id = load(ids + token), row = id < 0 ? -1 : rows(id);
    return row < 0 ? rows.count : row;
  }
};

// One digit of a token's row.
struct DigitOf {
  TokenTargets targets;
  int shift;
  __device__ int operator()(int i) const { return targets(i) >> shift & (max_buckets - 1); }
};

struct MoveToken {
  TokenTargets targets;
  const std::int32_t* tokens;  // nullptr: in order
  std::int32_t* sorted_rows;
  std::int32_t* sorted_tokens;
  __device__ void operator()(int i, int position) const {
    store(sorted_rows + position, targets(i));
    store(sorted_tokens + position, tokens != nullptr ? load(tokens + i) : i);
  }
};

struct SortedTokens {
  const std::int32_t* rows;    // [tokens], rising
  const std::int32_t* tokens;  // [tokens], rising within a row
};

struct TokenLists {
  ScratchArray<std::int32_t> rows, tokens;
};

// The least significant digit first; each pass keeps the order of the one before.
SortedTokens sort_tokens(Stream& stream, const ConstTensor& sources, TableRows table) {
  const std::int64_t tokens = sources.dim(0);
  ScratchLayout layout;
  TokenLists lists[2];
  for (TokenLists& list : lists) {
    list = {layout.add<std::int32_t>(tokens), layout.add<std::int32_t>(tokens)};
  }
  const auto counts = layout.add<std::int32_t>(sort_blocks(tokens) * max_buckets);
  const auto begins = layout.add<std::int32_t>(max_buckets + 1);
  std::byte* const scratch = stream.workspace(layout.bytes());

  SortedTokens from{sources.data<std::int32_t>(), nullptr};
  const int bits = std::bit_width(static_cast<unsigned>(table.count));
  for (int shift = 0, pass = 0; shift < bits; shift += bucket_bits, ++pass) {
    const TokenLists& to = lists[pass % 2];
    const TokenTargets targets{from.rows, table};
    counting_sort(stream,
                  {.name = "sort_tokens_by_id",
                   .items = static_cast<int>(tokens),
                   .buckets = max_buckets,
                   .counts = counts.in(scratch),
                   .bucket_begin = begins.in(scratch)},
                  DigitOf{targets, shift},
                  MoveToken{targets, from.tokens, to.rows.in(scratch), to.tokens.in(scratch)});
    from = {to.rows.in(scratch), to.tokens.in(scratch)};
    table.first_id = 0;  // ids have become rows
  }
  return from;
}

constexpr int warps_per_block = 4;

struct TableGradient {
  SortedTokens sorted;
  int tokens, rows;
  std::int64_t hidden;
  float* d_table;  // [rows, hidden]
};

// A warp stands at one place of the sorted order, for a run of columns. Where a table row begins it
// adds up all tokens of that row: 32 of them are looked up at once, eight are in flight.
template <class T, int n>
__global__ void __launch_bounds__(32 * warps_per_block)
    add_to_table(const T* d_y, TableGradient op) {
  constexpr int in_flight = 8;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int begin = static_cast<int>(blockIdx.x) * warps_per_block + warp;
  if (begin >= op.tokens) return;
  const int table_row = load(op.sorted.rows + begin);
  if (table_row >= op.rows || (begin > 0 && load(op.sorted.rows + begin - 1) == table_row)) return;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * n;
  const bool inside = column < op.hidden;
  float* const target = op.d_table + table_row * op.hidden + column;
  Values<n> total{};
  if (inside) total = load_values<n>(target);
  for (int first = begin, run = 32; run == 32; first += 32) {
    const bool same = first + lane < op.tokens && load(op.sorted.rows + first + lane) == table_row;
    const int token = same ? load(op.sorted.tokens + first + lane) : 0;
    run = __popc(__ballot_sync(all_lanes, same));
    for (int done = 0; done < run; done += in_flight) {
      Piece<T, n> rows[in_flight];
#pragma unroll
      for (int i = 0; i < in_flight; ++i) {
        const std::int64_t row = __shfl_sync(all_lanes, token, done + i);
        rows[i] = inside && done + i < run ? load_piece<n>(d_y + row * op.hidden + column)
                                           : Piece<T, n>{};
      }
#pragma unroll
      for (int i = 0; i < in_flight; ++i) {
        const Values<n> row = values_of(rows[i]);
#pragma unroll
        for (int j = 0; j < n; ++j) total[j] += done + i < run ? row[j] : 0.0f;
      }
    }
  }
  if (inside) store_values(target, total);
}

template <class T>
void table_gradient(Stream& stream, const EmbeddingBackward& op) {
  const std::int64_t hidden = op.d_y.dim(1);
  const int tokens = int_extent("EmbeddingBackward", op.d_y.dim(0));
  const TableRows table = rows_of("EmbeddingBackward", op.shard, op.d_table);
  const SortedTokens sorted = sort_tokens(stream, op.sources, table);
  const TableGradient gradient{sorted, tokens, table.count, hidden, op.d_table.data<float>()};
  visit_piece<T>(hidden, {op.d_y.raw(), op.d_table.raw()}, [&](auto n) {
    launch(stream,
           {.kernel = "add_to_table",
            .grid = {blocks_for("add_to_table", tokens, warps_per_block),
                     blocks_for("add_to_table", hidden, 32 * n)},
            .block = {32 * warps_per_block}},
           add_to_table<T, n>, op.d_y.data<T>(), gradient);
  });
}

void embedding_backward(Stream& stream, const EmbeddingBackward& op) {
  if (op.d_table.numel() > 0 && op.d_y.numel() > 0) {
    visit_float(op.d_y.dtype(), [&]<class T>(T) { table_gradient<T>(stream, op); });
  }
  if (op.d_visual) {
    scatter(stream, "embedding_backward_visual", op.d_y, op.sources, RowNames::sources,
            op.d_visual);
  }
}

}  // namespace

void register_embedding_rows(OperationTable& table) {
  table.add<EmbeddingForward>(embedding_forward);
  table.add<EmbeddingBackward>(embedding_backward);
  table.add<GatherRows>(gather_rows);
  table.add<ScatterRows>(scatter_rows);
}

}  // namespace orchard::GPU_NAMESPACE
