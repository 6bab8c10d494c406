// Who updates what among data ranks that hold the same parameters (ZeRO-1: Rajbhandari et al. 2020).
//
// The flat buffers of a ParameterStore are cut into buckets of whole parameters that are reduced
// alike, and each bucket into shards, one for each data rank of its group: dense parameters are
// shared among data ranks, experts among expert-data ranks. Shards are about equally long, and
// their edges lie on rows of parameters. A rank updates the rows of its shards; optimizer state and
// fp32 masters exist for them alone. A step moves each bucket twice: its gradients are
// reduce-scattered, and its new values are all-gathered.
#pragma once

#include <memory>
#include <vector>

#include "parallel/parallel_context.h"
#include "parallel/parameter.h"

namespace orchard {

struct FlatRange {
  std::int64_t begin = 0, count = 0;  // elements of a flat buffer
};

struct FlatBucket {
  FlatRange range;
  MeshGroup group = MeshGroup::data;  // that shares it: data or expert_data
  Reduction reduction;
  bool counts_once = true;           // this rank counts its shard where each element counts once
  std::vector<std::int64_t> counts;  // elements of each rank of the group, in order
  FlatRange own;                     // this rank's shard
  std::vector<Parameter*> parameters;
  std::size_t first_declared = 0;  // the smallest number of its parameters

  // Another pipeline stage has a part of its gradients.
  bool is_tied() const { return reduction.copy != TiedCopy::none; }
};

struct FlatShardOptions {
  // Of fp32 gradients. Large enough for bandwidth, small enough for backward to fill the first ones
  // early.
  std::int64_t bucket_bytes = std::int64_t{32} << 20;
};

class FlatShards {
 public:
  // The store has been allocated for training, on shards or not, and has not been written to. Sets
  // Parameter::owned. All arguments must outlive it.
  FlatShards(Device& device, Stream& stream, const ParallelContext& ranks, ParameterStore& store,
             const FlatShardOptions& options = {});

  // In the order in which backward fills them: the last declared first, those that two pipeline
  // stages hold after all others. The same on all ranks of a group.
  const std::vector<FlatBucket>& buckets() const { return buckets_; }
  ParameterStore& store() const { return store_; }
  const ParallelContext& ranks() const { return ranks_; }

  // This rank and the one with the other copy of tied parameters; null where there are none.
  const Communicator* tied_ranks() const { return tied_.get(); }

  // Whether this rank is the first of those that share the parameter's rows, with or without any.
  bool is_first_owner(const Parameter& parameter) const;
  // The parts of the flat gradients that this rank counts in a norm over all ranks.
  std::vector<FlatRange> counted_once() const;

  // Bucket's own shard of the gradients = sum over all ranks that have a part of them. The rest of
  // the bucket is left in between. Of tied buckets it waits for the other stage to reduce them, too.
  Pending reduce(Stream& stream, const FlatBucket& bucket) const;
  // All values of the bucket = those that the owners have.
  Pending gather_values(Stream& stream, const FlatBucket& bucket) const;
  // The same of one parameter's masters, which forward reads: only in bf16 mode.
  Pending gather_masters(Stream& stream, const FlatBucket& bucket,
                         const Parameter& parameter) const;
  // All gradients, after they have been reduced, on every rank: to look at, not to train with.
  void gather_gradients(Stream& stream) const;

 private:
  void make_buckets(std::int64_t bucket_bytes);
  void cut(FlatBucket& bucket) const;
  void own(Device& device, Stream& stream);
  void meet_tied_stage();

  const ParallelContext& ranks_;
  ParameterStore& store_;
  std::vector<FlatBucket> buckets_;
  Buffer masters_;
  std::unique_ptr<Communicator> tied_;
};

}  // namespace orchard
