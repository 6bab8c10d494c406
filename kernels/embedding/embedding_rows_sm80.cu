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

void embedding_forward(Stream& stream, const EmbeddingForward& op) {
  visit_unit(row_bytes(op.y), {op.table.raw(), op.visual.raw(), op.y.raw()},
             [&]<class Unit>(Unit, std::int64_t units) {
               launch_copy_rows(stream, "embedding",
                                TokenRows<Unit>{static_cast<const Unit*>(op.table.raw()),
                                                static_cast<const Unit*>(op.visual.raw()),
                                                op.sources.data<std::int32_t>(), units},
                                static_cast<Unit*>(op.y.raw()), op.y.dim(0));
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

// One digit of a token's id. Visual tokens come last: their id is that of no table row.
struct DigitOf {
  const std::int32_t* ids;
  int vocab, shift;
  __device__ int operator()(int i) const {
    const int id = load(ids + i);
    return (id < 0 ? vocab : id) >> shift & (max_buckets - 1);
  }
};

struct MoveToken {
  const std::int32_t* ids;
  const std::int32_t* tokens;  // nullptr: in order
  int vocab;
  std::int32_t* sorted_ids;
  std::int32_t* sorted_tokens;
  __device__ void operator()(int i, int position) const {
    const int id = load(ids + i);
    store(sorted_ids + position, id < 0 ? vocab : id);
    store(sorted_tokens + position, tokens != nullptr ? load(tokens + i) : i);
  }
};

struct SortedTokens {
  const std::int32_t* ids;     // [tokens], rising; `vocab` for visual tokens
  const std::int32_t* tokens;  // [tokens], rising within an id
};

struct TokenLists {
  ScratchArray<std::int32_t> ids, tokens;
};

// The least significant digit first; each pass keeps the order of the one before.
SortedTokens sort_tokens(Stream& stream, const ConstTensor& sources, std::int64_t vocab) {
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
  const int bits = std::bit_width(static_cast<std::uint64_t>(vocab));
  for (int shift = 0, pass = 0; shift < bits; shift += bucket_bits, ++pass) {
    const TokenLists& to = lists[pass % 2];
    const auto limit = static_cast<int>(vocab);
    counting_sort(
        stream,
        {.name = "sort_tokens_by_id",
         .items = static_cast<int>(tokens),
         .buckets = max_buckets,
         .counts = counts.in(scratch),
         .bucket_begin = begins.in(scratch)},
        DigitOf{from.ids, limit, shift},
        MoveToken{from.ids, from.tokens, limit, to.ids.in(scratch), to.tokens.in(scratch)});
    from = {to.ids.in(scratch), to.tokens.in(scratch)};
  }
  return from;
}

constexpr int warps_per_block = 4;

struct TableGradient {
  SortedTokens sorted;
  int tokens, vocab;
  std::int64_t hidden;
  float* d_table;  // [vocab, hidden]
};

// A warp stands at one place of the sorted order, for a run of columns. Where an id begins it adds
// up all tokens of that id: 32 of them are looked up at once, eight rows are in flight.
template <class T, int n>
__global__ void __launch_bounds__(32 * warps_per_block)
    add_to_table(const T* d_y, TableGradient op) {
  constexpr int in_flight = 8;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int begin = static_cast<int>(blockIdx.x) * warps_per_block + warp;
  if (begin >= op.tokens) return;
  const int id = load(op.sorted.ids + begin);
  if (id >= op.vocab || (begin > 0 && load(op.sorted.ids + begin - 1) == id)) return;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * n;
  const bool inside = column < op.hidden;
  float* const target = op.d_table + id * op.hidden + column;
  Values<n> total{};
  if (inside) total = load_values<n>(target);
  for (int first = begin, run = 32; run == 32; first += 32) {
    const bool same = first + lane < op.tokens && load(op.sorted.ids + first + lane) == id;
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
  const std::int64_t hidden = op.d_y.dim(1), vocab = op.d_table.dim(0);
  const int tokens = int_extent("EmbeddingBackward", op.d_y.dim(0));
  const SortedTokens sorted = sort_tokens(stream, op.sources, vocab);
  const TableGradient gradient{sorted, tokens, int_extent("EmbeddingBackward", vocab), hidden,
                               op.d_table.data<float>()};
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
