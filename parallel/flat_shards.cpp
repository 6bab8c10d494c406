#include "parallel/flat_shards.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"

namespace orchard {
namespace {

std::int64_t end_of(const Parameter& p) {
  return p.offset + p.shape().numel();
}

std::int64_t row_elements(const Parameter& p) {
  return p.shape().numel() / p.shape()[0];
}

// Where a shard may begin in a parameter: at a row, and in a vector at a cache line.
std::int64_t unit_of(const Parameter& p) {
  constexpr std::int64_t cache_line = 16;  // floats
  return p.shape().rank() == 1 ? cache_line : row_elements(p);
}

// The permitted edge nearest to `wanted`.
std::int64_t edge_near(const std::vector<Parameter*>& parameters, std::int64_t wanted) {
  // The first parameter that ends at or after the edge holds it, or begins after padding with it.
  const auto at =
      std::ranges::find_if(parameters, [&](const Parameter* p) { return end_of(*p) >= wanted; });
  if (at == parameters.end()) return end_of(*parameters.back());
  const Parameter& p = **at;
  if (wanted <= p.offset) return p.offset;
  const std::int64_t unit = unit_of(p), units = (wanted - p.offset + unit / 2) / unit;
  return std::min(p.offset + units * unit, end_of(p));
}

// The elements that a parameter and a stretch have in common.
FlatRange common(const Parameter& p, const FlatRange& range) {
  const std::int64_t begin = std::max(p.offset, range.begin),
                     end = std::min(end_of(p), range.begin + range.count);
  return {begin, std::max<std::int64_t>(end - begin, 0)};
}

}  // namespace

FlatShards::FlatShards(Device& device, Stream& stream, const ParallelContext& ranks,
                       ParameterStore& store, const FlatShardOptions& options)
    : ranks_(ranks), store_(store) {
  make_buckets(options.bucket_bytes);
  for (FlatBucket& bucket : buckets_) cut(bucket);
  own(device, stream);
  std::ranges::stable_sort(buckets_, [](const FlatBucket& a, const FlatBucket& b) {
    if (a.is_tied() != b.is_tied()) return b.is_tied();
    return a.first_declared > b.first_declared;
  });
  meet_tied_stage();
}

void FlatShards::meet_tied_stage() {
  std::vector<int> members;
  for (const FlatBucket& bucket : buckets_) {
    if (!bucket.is_tied()) continue;
    for (const Parameter* p : bucket.parameters) {
      const Sharding& sharding = p->spec.sharding;
      const PipelineStages& stages = ranks_.stages();
      std::vector<int> pair = ranks_.mesh().embedding_group(
          ranks_.rank(), stages.rank_of(sharding.link), stages.rank_of(sharding.tied_link));
      require(members.empty() || members == pair, "{} is tied to another stage than others",
              p->spec.name);
      members = std::move(pair);
    }
  }
  if (!members.empty()) tied_ = ranks_[MeshGroup::world].make_group("pp-tied", members);
}

void FlatShards::make_buckets(std::int64_t bucket_bytes) {
  std::vector<Parameter*> order;
  for (Parameter& p : store_.parameters()) order.push_back(&p);
  std::ranges::sort(order, {}, &Parameter::offset);
  auto next = order.begin();
  for (const ParameterSegment& segment : store_.segments()) {
    const std::int64_t end = segment.begin + segment.count;
    for (std::int64_t begin = segment.begin; begin < end;) {
      FlatBucket bucket{.reduction = segment.reduction, .counts_once = segment.counts};
      if (bucket.reduction.parameter_class == ParameterClass::expert)
        bucket.group = MeshGroup::expert_data;
      const auto is_full = [&](std::int64_t until) {
        return (until - begin) * static_cast<std::int64_t>(sizeof(float)) >= bucket_bytes;
      };
      std::int64_t until = begin;
      while (until < end && !is_full(until)) {
        bucket.parameters.push_back(*next++);
        until = next == order.end() ? end : std::min((*next)->offset, end);
      }
      bucket.range = {begin, until - begin};
      bucket.first_declared =
          (*std::ranges::min_element(bucket.parameters, {}, &Parameter::declared))->declared;
      buckets_.push_back(std::move(bucket));
      begin = until;
    }
  }
}

void FlatShards::cut(FlatBucket& bucket) const {
  const Communicator& group = ranks_[bucket.group];
  const FlatRange& whole = bucket.range;
  std::int64_t begin = whole.begin;
  for (int r = 0; r < group.size(); ++r) {
    const bool last = r + 1 == group.size();
    const std::int64_t end =
        last ? whole.begin + whole.count
             : edge_near(bucket.parameters, whole.begin + whole.count * (r + 1) / group.size());
    bucket.counts.push_back(end - begin);
    if (r == group.rank()) bucket.own = {begin, end - begin};
    begin = end;
  }
}

void FlatShards::own(Device& device, Stream& stream) {
  std::int64_t elements = 0;  // of masters that are nowhere else
  for (const FlatBucket& bucket : buckets_)
    for (const Parameter* p : bucket.parameters)
      if (!p->master) elements += common(*p, bucket.own).count;
  Tensor masters;
  if (elements > 0) {
    masters_ = device.allocate(static_cast<std::size_t>(elements) * sizeof(float));
    masters = masters_.tensor(DType::f32, {elements});
    stream.fill_zero(masters);
  }
  std::int64_t next = 0;
  for (const FlatBucket& bucket : buckets_) {
    for (Parameter* p : bucket.parameters) {
      const FlatRange range = common(*p, bucket.own);
      const std::int64_t row = row_elements(*p);
      OwnedRows& owned = p->owned;
      owned.begin = range.count == 0 ? 0 : (range.begin - p->offset) / row;
      owned.count = range.count / row;
      owned.gradient = p->gradient.slice(owned.begin, owned.count);
      if (store_.dtype() == DType::bf16) owned.copy = p->value.slice(owned.begin, owned.count);
      if (p->master) {
        owned.master = p->master.slice(owned.begin, owned.count);
      } else if (range.count > 0) {
        owned.master = masters.slice(next, range.count).reshape(p->shape().with(0, owned.count));
        next += range.count;
      }
    }
  }
}

bool FlatShards::is_first_owner(const Parameter& parameter) const {
  const bool experts = parameter.shard.reduction.parameter_class == ParameterClass::expert;
  return ranks_[experts ? MeshGroup::expert_data : MeshGroup::data].rank() == 0;
}

std::vector<FlatRange> FlatShards::counted_once() const {
  std::vector<FlatRange> ranges;
  for (const FlatBucket& bucket : buckets_)
    if (bucket.counts_once) ranges.push_back(bucket.own);
  return ranges;
}

Pending FlatShards::reduce(Stream& stream, const FlatBucket& bucket) const {
  const Tensor gradients = store_.flat_gradients(),
               all = gradients.slice(bucket.range.begin, bucket.range.count);
  for (const Parameter* p : bucket.parameters)
    if (p->shard.tied_here)
      run(stream, Add{.a = p->gradient, .b = p->tied_gradient, .y = p->gradient});
  // Of norms and the like, which are short: worth no second operation in flight.
  if (bucket.reduction.partial)
    ranks_.replicas(bucket.reduction.replicas).all_reduce_sum(stream, all).wait(stream);
  const Tensor own = gradients.slice(bucket.own.begin, bucket.own.count);
  Pending scattered = ranks_[bucket.group].reduce_scatter_sum(stream, own, all, bucket.counts);
  if (!bucket.is_tied() || bucket.own.count == 0) return scattered;
  scattered.wait(stream);
  return tied_->all_reduce_sum(stream, own);
}

Pending FlatShards::gather_values(Stream& stream, const FlatBucket& bucket) const {
  const Tensor values = store_.flat_values();
  return ranks_[bucket.group].all_gather(
      stream, values.slice(bucket.range.begin, bucket.range.count),
      values.slice(bucket.own.begin, bucket.own.count), bucket.counts);
}

Pending FlatShards::gather_masters(Stream& stream, const FlatBucket& bucket,
                                   const Parameter& parameter) const {
  std::vector<std::int64_t> counts;
  std::int64_t begin = bucket.range.begin;
  for (const std::int64_t count : bucket.counts) {
    counts.push_back(common(parameter, {begin, count}).count);
    begin += count;
  }
  return ranks_[bucket.group].all_gather(stream, parameter.master, parameter.owned.master, counts);
}

void FlatShards::gather_gradients(Stream& stream) const {
  const Tensor gradients = store_.flat_gradients();
  for (const FlatBucket& bucket : buckets_) {
    ranks_[bucket.group]
        .all_gather(stream, gradients.slice(bucket.range.begin, bucket.range.count),
                    gradients.slice(bucket.own.begin, bucket.own.count), bucket.counts)
        .wait(stream);
  }
}

}  // namespace orchard
