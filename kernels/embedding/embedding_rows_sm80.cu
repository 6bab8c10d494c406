// Row gathers and scatters on GPUs, from sm_80 on.
//
// Bytes: 2·e per element of e bytes that is moved; the table gradient 8 + e per element of the rows
// that tokens name, and for the order of the sums 20 bytes per token and what the library's sort moves.
// Bound: HBM bandwidth.
//
// Gathers are copies of rows (kernels/gpu/copy_rows.h). Scatters gather, too, through the inverse of
// their indices, so that each row is written once. The table gradient adds the rows of one id in
// token order, as the CPU does, bit for bit: token numbers are sorted by id, stably. A warp adds up all
// tokens of an id. Those of the few ids that many tokens name, whose sum takes as many dependent steps, are
// shared out by columns, and begin first.
#include <bit>

#include "kernels/core/visit.h"
#include "kernels/device/scratch.h"
#include "kernels/device/stream.h"
#include "kernels/embedding/embedding.h"
#include "kernels/embedding/embedding_gpu.h"
#include "kernels/gpu/copy_rows.h"
#include "kernels/gpu/pieces.h"
#include "kernels/gpu/sort_pairs.h"
#include "kernels/gpu/warp.h"

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
                       DType::i32, {rows}, y.device());
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

// What each token adds to: a row of the table, or one row more, which stands for all that is not in the
// table, visual tokens and other ranks' ids.
__global__ void __launch_bounds__(block_threads)
    list_targets(const std::int32_t* ids, TableRows table, int tokens, std::int32_t* rows,
                 std::int32_t* numbers) {
  const int token = static_cast<int>(blockIdx.x) * block_threads + static_cast<int>(threadIdx.x);
  if (token >= tokens) return;
  const int id = load(ids + token), row = id < 0 ? -1 : table(id);
  store(rows + token, row < 0 ? table.count : row);
  store(numbers + token, token);
}

struct SortedTokens {
  const std::int32_t* rows;    // [tokens], rising
  const std::int32_t* tokens;  // [tokens], rising within a row
};

SortedTokens sort_tokens(Stream& stream, const std::int32_t* ids, int tokens, TableRows table) {
  const int bits = std::bit_width(static_cast<unsigned>(table.count));
  ScratchLayout layout;
  const auto rows = layout.add<std::int32_t>(tokens), numbers = layout.add<std::int32_t>(tokens);
  const auto sorted_rows = layout.add<std::int32_t>(tokens),
             sorted_numbers = layout.add<std::int32_t>(tokens);
  const auto sort_scratch =
      layout.add<std::byte>(static_cast<std::int64_t>(sort_scratch_bytes(tokens, bits)));
  std::byte* const scratch = stream.workspace(layout.bytes());
  launch(stream,
         {.kernel = "list_targets",
          .grid = {blocks_for("list_targets", tokens, block_threads)},
          .block = {block_threads}},
         list_targets, ids, table, tokens, rows.in(scratch), numbers.in(scratch));
  sort_pairs(stream,
             {.items = tokens,
              .bits = bits,
              .keys = rows.in(scratch),
              .values = numbers.in(scratch),
              .sorted_keys = sorted_rows.in(scratch),
              .sorted_values = sorted_numbers.in(scratch)},
             sort_scratch.in(scratch));
  return {sorted_rows.in(scratch), sorted_numbers.in(scratch)};
}

constexpr int warps_per_block = 4;
constexpr int window = 32;  // places of the sorted order that a warp looks at together

struct TableGradient {
  SortedTokens sorted;
  int tokens, rows;
  std::int64_t hidden;
  float* d_table;       // [rows, hidden]
  int long_run_blocks;  // come first
  int chunks;           // of the columns, 32 · n each

  // Whether the place is there and of this table row.
  __device__ bool is_of(int table_row, int place) const {
    return place < tokens && load(sorted.rows + place) == table_row;
  }
};

// Up to 32 tokens from a place of the sorted order on that are of one table row: one a lane.
struct TokenWindow {
  int token = 0, count = 0;
};
__device__ inline TokenWindow window_at(const TableGradient& op, int table_row, int place) {
  const int own = place + static_cast<int>(threadIdx.x) % 32;
  const bool same = op.is_of(table_row, own);
  return {same ? load(op.sorted.tokens + own) : 0, __popc(__ballot_sync(all_lanes, same))};
}

// The columns of a lane: one of `chunks` runs of n, 32·n apart. A lane beyond the last column has the last
// ones once more, so that loads take no branch; it stores nothing.
template <int n, int chunks>
struct TableColumns {
  std::int64_t first, hidden;
  __device__ bool inside(int c) const { return first + c * 32 * n < hidden; }
  __device__ std::int64_t at(int c) const { return inside(c) ? first + c * 32 * n : hidden - n; }
};

// Adds the rows of a window's tokens [done, done + at_once) to the totals.
template <int at_once, class T, int n, int chunks>
__device__ void add_rows(const T* d_y, const TokenWindow& tokens, int done,
                         const TableColumns<n, chunks>& columns, Values<n> (&total)[chunks]) {
  Piece<T, n> held[at_once][chunks];
#pragma unroll
  for (int i = 0; i < at_once; ++i) {
    const std::int64_t token = __shfl_sync(all_lanes, tokens.token, done + i);
    const T* const row = d_y + token * columns.hidden;
#pragma unroll
    for (int c = 0; c < chunks; ++c) held[i][c] = load_piece<n>(row + columns.at(c));
  }
#pragma unroll
  for (int i = 0; i < at_once; ++i) {
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const Values<n> values = values_of(held[i][c]);
#pragma unroll
      for (int k = 0; k < n; ++k) total[c][k] += values[k];
    }
  }
}

// d_table's columns += the rows of all tokens from `begin` on that are of this table row, in order;
// `tokens` are the first of them. At most `at_once` rows are in flight.
template <int at_once, class T, int n, int chunks>
__device__ void add_run(const T* d_y, const TableGradient& op, int table_row, int begin,
                        TokenWindow tokens, const TableColumns<n, chunks>& columns) {
  float* const target = op.d_table + table_row * op.hidden;
  Values<n> total[chunks];
#pragma unroll
  for (int c = 0; c < chunks; ++c) total[c] = load_values<n>(target + columns.at(c));
  for (int place = begin; tokens.count > 0;) {
    place += window;
    const TokenWindow next =
        tokens.count == window ? window_at(op, table_row, place) : TokenWindow{};
    int done = 0;
    for (; done + at_once <= tokens.count; done += at_once) {
      add_rows<at_once>(d_y, tokens, done, columns, total);
    }
#pragma unroll 1
    for (; done < tokens.count; ++done) add_rows<1>(d_y, tokens, done, columns, total);
    tokens = next;
  }
  __syncwarp();  // lanes beyond the last column have read what others write
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (columns.inside(c)) store_values(target + columns.at(c), total[c]);
  }
}

// A run is long if a whole window of the sorted order, aligned to its size, is of its table row. One chunk
// of columns and the first such window of a run are a warp's.
template <class T, int n>
__device__ void add_long_run(const T* d_y, const TableGradient& op, int warp) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int place = warp / op.chunks * window;
  if (place + window > op.tokens) return;
  const int own_row = load(op.sorted.rows + place + lane);
  const int table_row = __shfl_sync(all_lanes, own_row, 0);
  const bool is_whole = __ballot_sync(all_lanes, own_row == table_row) == all_lanes;
  if (!is_whole || table_row >= op.rows) return;
  const bool before = place > 0 && load(op.sorted.rows + place - window + lane) == table_row;
  const unsigned earlier = __ballot_sync(all_lanes, before);
  if (earlier == all_lanes) return;
  const int begin = place - __popc(earlier);
  const TableColumns<n, 1> columns{(static_cast<std::int64_t>(warp % op.chunks) * 32 + lane) * n,
                                   op.hidden};
  add_run<16>(d_y, op, table_row, begin, window_at(op, table_row, begin), columns);
}

// The warp of the place where a run begins that is not long: all columns.
template <class T, int n>
__device__ void add_short_run(const T* d_y, const TableGradient& op, int begin) {
  if (begin >= op.tokens) return;
  const int table_row = load(op.sorted.rows + begin);
  const int whole = (begin + window - 1) / window * window;  // the first aligned window
  if (table_row >= op.rows || (begin > 0 && op.is_of(table_row, begin - 1)) ||
      op.is_of(table_row, whole + window - 1)) {
    return;
  }
  constexpr int chunks = 4;
  const TokenWindow tokens = window_at(op, table_row, begin);
  for (std::int64_t first = static_cast<int>(threadIdx.x) % 32 * n;
       first - first % (32 * n) < op.hidden; first += chunks * 32 * n) {
    add_run<2>(d_y, op, table_row, begin, tokens, TableColumns<n, chunks>{first, op.hidden});
  }
}

template <class T, int n>
__global__ void __launch_bounds__(32 * warps_per_block)
    add_to_table(const T* d_y, TableGradient op) {
  const int block = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
  if (block < op.long_run_blocks) {
    add_long_run<T, n>(d_y, op, block * warps_per_block + warp);
  } else {
    add_short_run<T, n>(d_y, op, (block - op.long_run_blocks) * warps_per_block + warp);
  }
}

template <class T>
void table_gradient(Stream& stream, const EmbeddingBackward& op) {
  const std::int64_t hidden = op.d_y.dim(1);
  const int tokens = int_extent("EmbeddingBackward", op.d_y.dim(0));
  const TableRows table = rows_of("EmbeddingBackward", op.shard, op.d_table);
  const SortedTokens sorted = sort_tokens(stream, op.sources.data<std::int32_t>(), tokens, table);
  visit_width<quad>(hidden, {op.d_y.raw(), op.d_table.raw()}, [&](auto n) {
    const std::int64_t chunks = ceil_div(hidden, 32 * n);
    const unsigned long_runs =
        blocks_for("add_to_table", tokens / window * chunks, warps_per_block);
    const unsigned short_runs = blocks_for("add_to_table", tokens, warps_per_block);
    const TableGradient gradient{.sorted = sorted,
                                 .tokens = tokens,
                                 .rows = table.count,
                                 .hidden = hidden,
                                 .d_table = op.d_table.data<float>(),
                                 .long_run_blocks = static_cast<int>(long_runs),
                                 .chunks = static_cast<int>(chunks)};
    launch(stream,
           {.kernel = "add_to_table",
            .grid = {long_runs + short_runs},
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
