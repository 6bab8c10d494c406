#include "models/tensor_parallel.h"

#include "kernels/elementwise/elementwise.h"

namespace orchard {
namespace {

bool rows_are_cut(const ParallelContext* parallel) {
  return parallel && parallel->place().sequence_parallel == SequenceParallel::yes &&
         parallel->place().tensor.size > 1;
}
bool rows_are_cut(const Pass& pass) {
  return rows_are_cut(pass.parallel);
}

Communicator& tensor_ranks(const Pass& pass) {
  return (*pass.parallel)[MeshGroup::tensor];
}

std::int64_t chunks_of_layout(const Pass& pass) {
  return pass.parallel ? pass.parallel->mesh().layout().tensor_chunks : 1;
}

// Keeps an operation that may go on beside products.
void keep(const Pass& pass, std::vector<Pending>& pending, Pending operation) {
  if (pass.overlap == Overlap::no) operation.wait(pass.stream);
  pending.push_back(std::move(operation));
}

}  // namespace

Place tensor_place(const Pass& pass) {
  return pass.parallel ? pass.parallel->place().tensor : Place{};
}

std::int64_t local_rows(const ParallelContext* parallel, std::int64_t rows) {
  if (!rows_are_cut(parallel)) return rows;
  const int ranks = parallel->place().tensor.size;
  return (rows + ranks - 1) / ranks;
}

std::int64_t local_rows(const Pass& pass, std::int64_t rows) {
  return local_rows(pass.parallel, rows);
}

ConstTensor gather_rows(const Pass& pass, ConstTensor x, std::int64_t rows) {
  if (!rows_are_cut(pass)) return x;
  const Tensor all =
      pass.allocate(x.dtype(), x.shape().with(0, x.dim(0) * tensor_place(pass).size));
  tensor_ranks(pass).all_gather(pass.stream, all, x).wait(pass.stream);
  return all.slice(0, rows);
}

ConstTensor share_of_rows(const Pass& pass, ConstTensor x) {
  if (!rows_are_cut(pass)) return x;
  const std::int64_t rows = x.dim(0), share = local_rows(pass, rows);
  const std::int64_t begin = std::min(rows, tensor_place(pass).index * share);
  const std::int64_t real = std::min(rows - begin, share);
  if (real == share) return x.slice(begin, share);
  const Tensor padded = pass.allocate(x.dtype(), x.shape().with(0, share));
  pass.stream.copy(padded.slice(0, real), x.slice(begin, real));
  pass.stream.fill_zero(padded.slice(real, share - real));
  return padded;
}

RowChunks::RowChunks(const Pass& pass, std::int64_t rows)
    : RowChunks(pass, rows, chunks_of_layout(pass)) {}

// On one rank nothing is sent, so nothing is gained by cutting.
RowChunks::RowChunks(const Pass& pass, std::int64_t rows, std::int64_t chunks)
    : rows_(rows),
      sections_(rows_are_cut(pass) ? tensor_place(pass).size : 1),
      share_(local_rows(pass, rows)),
      chunks_(tensor_place(pass).size == 1
                  ? 1
                  : static_cast<int>(std::clamp<std::int64_t>(chunks, 1, std::max(share_, {1})))) {}

void RowChunks::zero_padding(Stream& stream, int chunk, const Tensor& all) const {
  for (int section = 0; section < sections_; ++section) {
    const std::int64_t real = real_rows(chunk, section), padding = rows_of_section(chunk) - real;
    if (padding > 0) stream.fill_zero(section_of(chunk, section, all).slice(real, padding));
  }
}

RowChunks gathered_chunks(const Pass& pass, std::int64_t rows) {
  return rows_are_cut(pass) ? RowChunks(pass, rows) : RowChunks::one(pass, rows);
}

RowGathering::RowGathering(const Pass& pass, ConstTensor x, std::int64_t rows)
    : pass_(pass), chunks_(gathered_chunks(pass, rows)), all_(x) {
  if (!rows_are_cut(pass)) return;
  const Tensor all = pass.allocate(x.dtype(), x.shape().with(0, chunks_.rows_in_memory()));
  all_ = all;
  for (int chunk = 0; chunk < chunks_.count(); ++chunk)
    keep(pass, pending_,
         tensor_ranks(pass).all_gather(pass.stream, chunks_.of_memory(chunk, all),
                                       chunks_.of_section(chunk, x)));
}

RowSum::RowSum(const Pass& pass, std::int64_t rows, Tensor y, DType parts)
    : pass_(pass),
      rows_(rows),
      y_(y),
      scope_(pass.arena),
      chunks_(RowChunks::one(pass, rows)),
      all_(y) {
  if (tensor_place(pass).size == 1 || (!rows_are_cut(pass) && parts == y.dtype())) return;
  all_ = pass.allocate(parts, y.shape().with(0, chunks_.rows_in_memory()));
}

Tensor RowSum::sum_of(int chunk) const {
  if (!rows_are_cut(pass_)) return chunks_.of_memory(chunk, all_);
  return all_.dtype() == y_.dtype() ? chunks_.of_section(chunk, y_)
                                    : chunks_.section_of(chunk, tensor_place(pass_).index, all_);
}

void RowSum::start(int chunk) {
  if (tensor_place(pass_).size == 1) return;
  chunks_.zero_padding(pass_.stream, chunk, all_);
  Communicator& ranks = tensor_ranks(pass_);
  const Tensor sum = sum_of(chunk);
  keep(pass_, pending_,
       rows_are_cut(pass_)
           ? ranks.reduce_scatter_sum(pass_.stream, sum, chunks_.of_memory(chunk, all_))
           : ranks.all_reduce_sum(pass_.stream, sum));
}

void RowSum::finish() {
  if (tensor_place(pass_).size == 1) return;
  if (pending_.empty()) start(0);
  for (int chunk = 0; chunk < chunks_.count(); ++chunk) {
    pending_[static_cast<std::size_t>(chunk)].wait(pass_.stream);
    const Tensor sum = sum_of(chunk), y = chunks_.of_section(chunk, y_);
    if (sum.raw() != y.raw()) run(pass_.stream, Convert{.x = sum, .y = y});
  }
}

}  // namespace orchard
