// The communication of a step over FlatShards: gradients go to their owners while backward runs, and
// values come back while the optimizer does.
#pragma once

#include <vector>

#include "parallel/flat_shards.h"
#include "parallel/gradient_evidence.h"
#include "parallel/gradient_listener.h"
#include "parallel/overlap.h"

namespace orchard {

// Reduces each bucket once a step. Buckets are always sent in the same order, so that ranks agree
// on it even where one of them finishes a gradient that another never touched (a micro-batch
// without pictures).
class GradientReducer final : public GradientListener {
 public:
  // The shards must outlive it.
  explicit GradientReducer(const FlatShards& shards) : shards_(shards), evidence_(shards) {}

  // Before the last micro-batch's backward.
  void begin(Stream& stream);
  void final_from(std::size_t declared) override;
  // Every gradient is final: sends what is left and waits for all.
  void finish(Stream& stream);

  // What ranks sent in the step that has been finished.
  const GradientEvidence& evidence() const { return evidence_; }

 private:
  void send_next();

  const FlatShards& shards_;
  GradientEvidence evidence_;
  Stream* stream_ = nullptr;
  std::vector<Pending> pending_;  // of the buckets that have been sent
};

// Gathers the values of each bucket once all its parameters have been updated.
class ValueGatherer {
 public:
  ValueGatherer(const FlatShards& shards, Overlap overlap) : shards_(shards), overlap_(overlap) {}

  // Parameters are updated in the order of the buckets.
  void updated(Stream& stream, const FlatBucket& bucket);
  // Later work on the stream sees all values.
  void finish(Stream& stream);

 private:
  const FlatShards& shards_;
  Overlap overlap_;
  std::vector<Pending> pending_;
};

}  // namespace orchard
