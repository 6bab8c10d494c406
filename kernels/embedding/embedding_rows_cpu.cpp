// Row gathers and scatters on the CPU. Bound by memory: 2·e bytes per element of e bytes; the table
// gradient 8 + e. Only rows that a token names are touched, so the vocabulary's size costs nothing.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/embedding/embedding_rows_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cstring>

#include "kernels/cpu/indices.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"
#include "kernels/embedding/embedding.h"
#include "kernels/embedding/embedding_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

template <class T>
void add_columns(const EmbeddingBackward& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t tokens = op.d_y.dim(0), hidden = op.d_y.dim(1), rows = op.d_table.dim(0);
  const std::int32_t* const sources = op.sources.data<std::int32_t>();
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t row = sources[t] - op.shard.first_id;
    if (sources[t] < 0 || row < 0 || row >= rows) continue;
    const T* const d_y = op.d_y.data<T>() + t * hidden + begin;
    float* const d_table = op.d_table.data<float>() + row * hidden + begin;
    for_each_vector(end - begin, [&](std::int64_t i, std::int64_t n) HWY_ATTR {
      store(hn::Add(load(d_table + i, n), load(d_y + i, n)), d_table + i, n);
    });
  }
}

// Threads share the columns, not the tokens: every element then adds up in token order, whatever
// the number of threads and however often an id occurs.
void add_to_table(const EmbeddingBackward& op) {
  const auto columns_of = op.d_y.dtype() == DType::f32 ? add_columns<float> : add_columns<bf16>;
  parallel_for(op.d_y.dim(1), 64,
               [&](std::int64_t begin, std::int64_t end) { columns_of(op, begin, end); });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(add_to_table);

namespace {

// How many rows a source may name: a negative count means that they are absent and unbounded.
struct SourceLimits {
  std::int64_t vocab, visual_tokens;
};

void check_sources(std::string_view operation, const ConstTensor& sources, SourceLimits limits) {
  const std::int32_t* const p = sources.data<std::int32_t>();
  for (std::int64_t t = 0; t < sources.numel(); ++t) {
    const std::int64_t id = p[t], visual_row = -1 - id;
    require(limits.vocab < 0 || id < limits.vocab,
            "{}: token {} has id {}, but the vocabulary has {} entries", operation, t, id,
            limits.vocab);
    require(limits.visual_tokens < 0 || visual_row < limits.visual_tokens,
            "{}: token {} (source {}) names visual row {}, but there are {} visual rows", operation,
            t, id, visual_row, limits.visual_tokens);
  }
}

// Rows of bytes, for copies that do not care about the dtype.
template <class Byte>
class ByteRows {
 public:
  template <class Void>
  explicit ByteRows(const BasicTensor<Void>& tensor)
      : data_(static_cast<Byte*>(tensor.raw())),
        bytes_(tensor ? static_cast<std::size_t>(tensor.dim(1)) * size_of(tensor.dtype()) : 0) {}
  Byte* operator[](std::int64_t row) const {
    return data_ + static_cast<std::size_t>(row) * bytes_;
  }
  std::size_t row_bytes() const { return bytes_; }

 private:
  Byte* data_;
  std::size_t bytes_;
};
using SourceRows = ByteRows<const std::byte>;
using TargetRows = ByteRows<std::byte>;

// y[i] = x[indices[i]] for i in [0, n), zeros where the index is negative.
void copy_rows(SourceRows x, const std::int32_t* indices, std::int64_t n, TargetRows y) {
  parallel_for(n, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (indices[i] < 0) {
        std::memset(y[i], 0, y.row_bytes());
      } else {
        std::memcpy(y[i], x[indices[i]], y.row_bytes());
      }
    }
  });
}

// inverse[row_of(i)] = i for the i in [0, n) that name a row (row_of(i) >= 0), -1 for the rows that
// none names. Lives in the stream's workspace.
template <class RowOf>
const std::int32_t* invert(Stream& stream, std::string_view operation, std::int64_t n,
                           std::int64_t rows, const RowOf& row_of) {
  auto* const inverse = reinterpret_cast<std::int32_t*>(
      stream.workspace(static_cast<std::size_t>(rows) * sizeof(std::int32_t)));
  std::fill_n(inverse, rows, -1);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t row = row_of(i);
    if (row < 0) continue;
    require(inverse[row] < 0, "{}: entries {} and {} both name row {}", operation, inverse[row], i,
            row);
    inverse[row] = static_cast<std::int32_t>(i);
  }
  return inverse;
}

void embedding_forward(Stream&, const EmbeddingForward& op) {
  const bool sharded = op.shard.vocabulary > 0;
  const std::int64_t rows = op.table.dim(0), visual_rows = op.visual ? op.visual.dim(0) : 0;
  check_sources("EmbeddingForward", op.sources,
                {sharded ? op.shard.vocabulary : rows, sharded && !op.visual ? -1 : visual_rows});
  const SourceRows table(op.table), visual(op.visual);
  const TargetRows y(op.y);
  const std::int32_t* const sources = op.sources.data<std::int32_t>();
  // Null: another rank's.
  const auto row_of = [&](std::int64_t source) -> const std::byte* {
    if (source < 0) return op.visual ? visual[-1 - source] : nullptr;
    const std::int64_t row = source - op.shard.first_id;
    return row >= 0 && row < rows ? table[row] : nullptr;
  };
  parallel_for(op.sources.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (const std::byte* const row = row_of(sources[t])) {
        std::memcpy(y[t], row, y.row_bytes());
      } else {
        std::memset(y[t], 0, y.row_bytes());
      }
    }
  });
}

// d_visual gathers: each of its rows copies the one token that names it.
void gather_visual(Stream& stream, const EmbeddingBackward& op) {
  const std::int32_t* const sources = op.sources.data<std::int32_t>();
  const std::int64_t rows = op.d_visual.dim(0);
  const std::int32_t* const token_of =
      invert(stream, "EmbeddingBackward (d_visual)", op.sources.dim(0), rows,
             [&](std::int64_t t) { return -1 - sources[t]; });
  copy_rows(SourceRows(op.d_y), token_of, rows, TargetRows(op.d_visual));
}

void embedding_backward(Stream& stream, const EmbeddingBackward& op) {
  const std::int64_t vocabulary = op.shard.vocabulary > 0 ? op.shard.vocabulary
                                  : op.d_table            ? op.d_table.dim(0)
                                                          : -1;
  check_sources("EmbeddingBackward", op.sources,
                {vocabulary, op.d_visual ? op.d_visual.dim(0) : -1});
  if (op.d_table) HWY_DYNAMIC_DISPATCH(add_to_table)(op);
  if (op.d_visual) gather_visual(stream, op);
}

void gather_rows(Stream&, const GatherRows& op) {
  check_indices("GatherRows", "indices", op.indices, -1, op.x.dim(0));
  copy_rows(SourceRows(op.x), op.indices.data<std::int32_t>(), op.indices.dim(0), TargetRows(op.y));
}

// Gathers through the inverse, so that every row of y is written once.
void scatter_rows(Stream& stream, const ScatterRows& op) {
  const std::int64_t rows = op.y.dim(0);
  check_indices("ScatterRows", "indices", op.indices, -1, rows);
  const std::int32_t* const indices = op.indices.data<std::int32_t>();
  const std::int32_t* const inverse = invert(stream, "ScatterRows", op.indices.dim(0), rows,
                                             [&](std::int64_t i) { return indices[i]; });
  copy_rows(SourceRows(op.x), inverse, rows, TargetRows(op.y));
}

}  // namespace

void register_embedding_rows(OperationTable& table) {
  table.add<EmbeddingForward>(embedding_forward);
  table.add<EmbeddingBackward>(embedding_backward);
  table.add<GatherRows>(gather_rows);
  table.add<ScatterRows>(scatter_rows);
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
