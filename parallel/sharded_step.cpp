#include "parallel/sharded_step.h"

namespace orchard {
namespace {

void wait_for_all(Stream& stream, std::vector<Pending>& pending) {
  for (Pending& p : pending) p.wait(stream);
  pending.clear();
}

}  // namespace

void GradientReducer::begin(Stream& stream) {
  stream_ = &stream;
  pending_.clear();
}

void GradientReducer::send_next() {
  const std::size_t bucket = pending_.size();
  evidence_.before(*stream_, bucket);
  pending_.push_back(shards_.reduce(*stream_, shards_.buckets()[bucket]));
  evidence_.after(bucket);
}

void GradientReducer::final_from(std::size_t declared) {
  const std::vector<FlatBucket>& buckets = shards_.buckets();
  while (pending_.size() < buckets.size()) {
    const FlatBucket& bucket = buckets[pending_.size()];
    if (bucket.is_tied() || bucket.first_declared < declared) return;
    send_next();
  }
}

void GradientReducer::finish(Stream& stream) {
  stream_ = &stream;
  // Those that two stages share come last, when neither has anything left that the other waits for.
  while (pending_.size() < shards_.buckets().size()) send_next();
  wait_for_all(stream, pending_);
}

void ValueGatherer::updated(Stream& stream, const FlatBucket& bucket) {
  const std::size_t before = pending_.size();
  pending_.push_back(shards_.gather_values(stream, bucket));
  for (const Parameter* p : bucket.parameters) {
    if (p->spec.forward_reads == ForwardReads::master && p->master.raw() != p->value.raw())
      pending_.push_back(shards_.gather_masters(stream, bucket, *p));
  }
  if (overlap_ == Overlap::no)
    for (std::size_t i = before; i < pending_.size(); ++i) pending_[i].wait(stream);
}

void ValueGatherer::finish(Stream& stream) {
  wait_for_all(stream, pending_);
}

}  // namespace orchard
