#include "models/chain.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "models/tensor_parallel.h"

namespace orchard {

Shape ChainShape::of(const DeviceBatch& batch, const ParallelContext* parallel) const {
  switch (kind) {
    case ChainRows::tower:
      return {local_rows(parallel, batch.tower_rows), width};
    case ChainRows::visual:
      return {batch.tiles * rows_per_tile, width};
    case ChainRows::tokens:
      return {local_rows(parallel, batch.rows), width};
    case ChainRows::none:
      break;
  }
  return {0, width};
}

ConstTensor added_up(Pass& pass, const Residual& stream) {
  if (!stream.delta) return stream.sum;
  const Tensor y = pass.allocate_like(stream.sum);
  run(pass.stream, Add{.a = stream.sum, .b = stream.delta, .y = y});
  return y;
}

// The last link hands nothing on and always runs.
bool Chain::runs(const Pass& pass, int i) const {
  const ChainShape& output = link(i).output();
  return output.kind == ChainRows::none || output.of(pass).numel() > 0;
}

ConstTensor Chain::forward(Pass& pass, LinkRange range, ConstTensor x, DType dtype,
                           Saved& saved) const {
  saved.range = range;
  saved.dtype = dtype;
  saved.links.clear();
  saved.marks.clear();
  if (pass.purpose == Purpose::train && saved.halves == BackwardHalves::in_turn) {
    std::int64_t largest = 0;
    for (int i = range.first; i + 1 < range.last; ++i)
      largest = std::max(largest, link(i).output().of(pass).numel());
    for (Tensor& gradient : saved.gradients) gradient = pass.allocate(dtype, {largest});
  }
  Residual stream{x, {}};
  for (int i = range.first; i < range.last; ++i) {
    saved.marks.push_back(pass.arena.mark());
    saved.links.push_back(link(i).make_saved());
    if (runs(pass, i)) stream = link(i).forward(pass, stream, *saved.links.back());
    pass.progress_messages();
  }
  return added_up(pass, stream);
}

void Chain::run_backward(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  const auto [first, last] = saved.range;
  const bool in_turn = saved.halves == BackwardHalves::in_turn;
  for (int i = last; i-- > first;) {
    if (!runs(pass, i)) continue;
    Tensor d_in = i == first ? d_x : Tensor();
    if (i > first && runs(pass, i - 1)) {
      const Shape shape = link(i - 1).output().of(pass);
      d_in = in_turn ? saved.gradients[i % 2].slice(0, shape.numel()).reshape(shape)
                     : pass.allocate(saved.dtype, shape);
    }
    link(i).backward_input(pass, d_y, saved.link(i), d_in);
    if (in_turn) {
      link(i).backward_weight(pass, saved.link(i));
      if (const auto declared = link(i).first_declared()) pass.gradients_final_from(*declared);
      pass.arena.rewind(saved.marks[static_cast<std::size_t>(i - first)]);
    }
    pass.progress_messages();
    d_y = d_in;
  }
}

void Chain::backward(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  require(saved.halves == BackwardHalves::in_turn,
          "the halves of backward were announced to come apart, and come together");
  run_backward(pass, d_y, saved, d_x);
}

void Chain::backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const {
  require(saved.halves == BackwardHalves::apart,
          "the halves of backward were announced to come in turn, and come apart");
  run_backward(pass, d_y, saved, d_x);
}

void Chain::backward_weight(Pass& pass, Saved& saved) const {
  for (int i = saved.range.last; i-- > saved.range.first;) {
    if (!runs(pass, i)) continue;
    link(i).backward_weight(pass, saved.link(i));
    if (const auto declared = link(i).first_declared()) pass.gradients_final_from(*declared);
    pass.progress_messages();
  }
}

}  // namespace orchard
