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

RowSum::RowSum(const Pass& pass, std::int64_t rows, Tensor y, DType parts)
    : pass_(pass), y_(y), scope_(pass.arena), part_(y) {
  const int ranks = tensor_place(pass).size;
  if (ranks == 1 || (!rows_are_cut(pass) && parts == y.dtype())) return;
  all_ = pass.allocate(parts, rows_are_cut(pass) ? y.shape().with(0, y.dim(0) * ranks) : y.shape());
  part_ = all_.slice(0, rows);
  if (const std::int64_t padding = all_.dim(0) - rows; padding > 0)
    pass.stream.fill_zero(all_.slice(rows, padding));
}

void RowSum::finish() {
  const Place place = tensor_place(pass_);
  if (place.size == 1) return;
  Tensor sum = part_;
  if (rows_are_cut(pass_)) {
    sum = all_.dtype() == y_.dtype() ? y_ : all_.slice(place.index * y_.dim(0), y_.dim(0));
    tensor_ranks(pass_).reduce_scatter_sum(pass_.stream, sum, all_).wait(pass_.stream);
  } else {
    tensor_ranks(pass_).all_reduce_sum(pass_.stream, sum).wait(pass_.stream);
  }
  if (sum.raw() != y_.raw()) run(pass_.stream, Convert{.x = sum, .y = y_});
}

}  // namespace orchard
