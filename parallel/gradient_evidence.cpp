#include "parallel/gradient_evidence.h"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise/elementwise.h"

namespace orchard {
namespace {

std::vector<float> on_host(Stream& stream, const ConstTensor& x) {
  std::vector<float> host(static_cast<std::size_t>(x.numel()));
  stream.copy(Tensor(host.data(), DType::f32, x.shape(), DeviceKind::cpu), x);
  stream.synchronize();
  return host;
}

bool is_finite(float x) {
  return std::isfinite(x);
}

}  // namespace

Tensor GradientEvidence::squares(std::size_t bucket) const {
  return squares_.tensor(DType::f32, {std::ssize(reductions_), 2})
      .slice(static_cast<std::int64_t>(bucket), 1)
      .reshape({2});
}

void GradientEvidence::before(Stream& stream, std::size_t number) {
  reductions_.resize(shards_.buckets().size());
  if (shards_.ranks()[MeshGroup::world].size() == 1) return;
  if (squares_.data() == nullptr) {
    squares_ = stream.device().allocate(reductions_.size() * 2 * sizeof(float));
    stream.fill_zero(squares_.tensor(DType::f32, {std::ssize(reductions_), 2}));
  }
  const FlatBucket& bucket = shards_.buckets()[number];
  run(stream, SumOfSquares{.x = shards_.store().flat_gradients().slice(bucket.range.begin,
                                                                       bucket.range.count),
                           .result = squares(number).slice(0, 1)});
  for (const Parameter* p : bucket.parameters)
    if (p->shard.tied_here)
      run(stream, SumOfSquares{.x = p->tied_gradient, .result = squares(number).slice(1, 1)});
}

void GradientEvidence::after(std::size_t number) {
  reductions_[number] = shards_.ranks()[shards_.buckets()[number].group].last_number();
}

// A rank whose own part of a bucket was not finite finds the parameter in what is left there: its
// own part or, in its shard, the sum, which is not finite either.
std::optional<GradientEvidence::Finding> GradientEvidence::own_finding(Stream& stream) const {
  std::optional<Finding> last;
  for (std::size_t b = 0; b < shards_.buckets().size(); ++b) {
    if (squares_.data() != nullptr && std::ranges::all_of(on_host(stream, squares(b)), is_finite))
      continue;
    for (const Parameter* p : shards_.buckets()[b].parameters) {
      if (last && p->declared < last->declared) continue;
      if (!std::ranges::all_of(on_host(stream, p->gradient), is_finite)) last = {p->declared, b};
    }
  }
  return last;
}

std::optional<GradientFault> GradientEvidence::first_fault(Stream& stream) const {
  Communicator& world = shards_.ranks()[MeshGroup::world];
  const std::optional<Finding> own = own_finding(stream);
  // What was declared last is the first that backward reaches. Of one parameter the lowest rank.
  const std::int64_t ranks = world.size();
  double first = -1;
  if (own)
    first = static_cast<double>(static_cast<std::int64_t>(own->declared) * ranks + ranks - 1 -
                                world.rank());
  const double mine = first;
  world.max_on_host({&first, 1});
  if (first < 0) return {};
  const auto found = static_cast<std::int64_t>(first);
  const Parameter& parameter =
      *shards_.store().catalogue()[static_cast<std::size_t>(found / ranks)];
  double number = mine == first ? static_cast<double>(reductions_[own->bucket]) : 0;
  world.max_on_host({&number, 1});
  const bool experts = parameter.spec.sharding.expert >= 0;
  return GradientFault{
      .rank = static_cast<int>(ranks - 1 - found % ranks),
      .parameter = parameter.spec.name,
      .operation = fmt::format(
          "{} {} of group {}", name_of(CommOp::reduce_scatter), static_cast<std::int64_t>(number),
          shards_.ranks()[experts ? MeshGroup::expert_data : MeshGroup::data].name())};
}

}  // namespace orchard
