// Where tensor ranks meet. A pair of products is cut between them: the first by its output columns
// (ColumnLinears), the second by its input columns (RowLinear), whose outputs are parts of a sum.
// Before and after a pair activations are *local*: whole on every tensor rank, or, under sequence
// parallelism, this rank's share of the rows, which are padded with zero rows to a multiple of the
// ranks and cut evenly (Korthikanti et al. 2022, §4.2). Inside a pair they have all rows, without
// padding. On one tensor rank nothing here costs anything.
//
// With Layout::tensor_chunks rows meet in chunks: while one is under way, the products of another
// are computed. They move the same bytes.
#pragma once

#include <algorithm>
#include <vector>

#include "models/layer.h"

namespace orchard {

// This rank among those that share a layer.
Place tensor_place(const Pass& pass);

// Rows of the local share of `rows` rows.
std::int64_t local_rows(const Pass& pass, std::int64_t rows);
std::int64_t local_rows(const ParallelContext* parallel, std::int64_t rows);  // as Pass has it

// [local rows, width] -> [rows, width]: those of all tensor ranks. x itself where nothing is cut.
ConstTensor gather_rows(const Pass& pass, ConstTensor x, std::int64_t rows);

// [rows, width] -> [local rows, width]: this rank's share of what it has all of.
ConstTensor share_of_rows(const Pass& pass, ConstTensor x);

// The rows of a pair in chunks. A chunk has as many rows of every section: of each rank's share, or
// of all rows where they are not cut. In memory the chunks follow each other, in a chunk its
// sections, padding included.
class RowChunks {
 public:
  // As many as the layout says, but none without a row.
  RowChunks(const Pass& pass, std::int64_t rows);
  // All rows in one.
  static RowChunks one(const Pass& pass, std::int64_t rows) { return {pass, rows, 1}; }

  int count() const { return chunks_; }
  std::int64_t rows_in_memory() const { return sections_ * share_; }

  // Rows of a chunk, of a tensor in the order of chunks; of a tensor with one section's rows; and of
  // a chunk those of this section.
  template <class AnyTensor>
  AnyTensor of_memory(int chunk, const AnyTensor& all) const {
    return all.slice(sections_ * begin(chunk), sections_ * rows_of_section(chunk));
  }
  template <class AnyTensor>
  AnyTensor of_section(int chunk, const AnyTensor& section) const {
    return section.slice(begin(chunk), rows_of_section(chunk));
  }
  template <class AnyTensor>
  AnyTensor section_of(int chunk, int section, const AnyTensor& all) const {
    return of_memory(chunk, all).slice(section * rows_of_section(chunk), rows_of_section(chunk));
  }

  // use(first row, [n, ...]) for the rows of a chunk, without padding, as they lie side by side both
  // in the micro-batch and in `all`, which has the order of chunks.
  template <class AnyTensor, class Use>
  void for_each_piece(int chunk, const AnyTensor& all, const Use& use) const {
    if (chunks_ == 1) return use(0, all.slice(0, rows_));
    for (int section = 0; section < sections_; ++section) {
      if (const std::int64_t real = real_rows(chunk, section); real > 0)
        use(section * share_ + begin(chunk), section_of(chunk, section, all).slice(0, real));
    }
  }
  template <class AnyTensor, class Use>
  void for_each_piece(const AnyTensor& all, const Use& use) const {
    for (int chunk = 0; chunk < chunks_; ++chunk) for_each_piece(chunk, all, use);
  }
  // Zeros in the rows of a chunk that for_each_piece leaves out.
  void zero_padding(Stream& stream, int chunk, const Tensor& all) const;

 private:
  RowChunks(const Pass& pass, std::int64_t rows, std::int64_t chunks);
  std::int64_t begin(int chunk) const { return share_ * chunk / chunks_; }
  std::int64_t rows_of_section(int chunk) const { return begin(chunk + 1) - begin(chunk); }
  // Without padding.
  std::int64_t real_rows(int chunk, int section) const {
    return std::clamp<std::int64_t>(rows_ - section * share_ - begin(chunk), 0,
                                    rows_of_section(chunk));
  }

  std::int64_t rows_;
  int sections_;
  std::int64_t share_;  // rows of a section
  int chunks_;
};

// The chunks in which rows are gathered: one, of all rows, where nothing is cut.
RowChunks gathered_chunks(const Pass& pass, std::int64_t rows);

// gather_rows for products that can begin with any rows.
class RowGathering {
 public:
  // Starts. Memory comes from the arena.
  RowGathering(const Pass& pass, ConstTensor x, std::int64_t rows);

  // use(first row, x [n, width]) for rows as they arrive. Once.
  template <class Use>
  void for_each_piece(const Use& use) {
    for (int chunk = 0; chunk < chunks_.count(); ++chunk) {
      if (!pending_.empty()) pending_[static_cast<std::size_t>(chunk)].wait(pass_.stream);
      chunks_.for_each_piece(chunk, all_, use);
    }
  }

  // In the order of gathered_chunks, for later: what for_each_piece uses.
  ConstTensor in_chunks() const { return all_; }

 private:
  const Pass& pass_;
  RowChunks chunks_;
  ConstTensor all_;
  std::vector<Pending> pending_;  // of each chunk; empty: nothing is cut
};

// The sum over tensor ranks of something [rows, width] of which each computes a part. Parts are
// added in fp32 and rounded once. Until finish(), memory that others take from the arena is freed
// with the sum's.
class RowSum {
 public:
  // y [local rows, width] receives the sum. Parts are f32 unless they need no rounding in `parts`.
  RowSum(const Pass& pass, std::int64_t rows, Tensor y, DType parts = DType::f32);

  // compute(first row, part [n, width]) for all rows, by and by; each chunk leaves when it is there.
  template <class Compute>
  void compute(const Compute& compute) {
    chunks_ = RowChunks(pass_, rows_);
    for (int chunk = 0; chunk < chunks_.count(); ++chunk) {
      chunks_.for_each_piece(chunk, all_, compute);
      start(chunk);
    }
  }
  // Or, for what is not computed row by row: [rows, width], to be filled before finish.
  Tensor part() const { return all_.slice(0, rows_); }
  void finish();

 private:
  void start(int chunk);
  Tensor sum_of(int chunk) const;

  const Pass& pass_;
  std::int64_t rows_;
  Tensor y_;
  ArenaScope scope_;
  RowChunks chunks_;
  Tensor all_;  // parts of all rows, in the order of chunks; y where it can take them
  std::vector<Pending> pending_;
};

}  // namespace orchard
