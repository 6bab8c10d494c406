// Which samples fill which packed sequence.
//
// Samples are taken in the order they are drawn; when the next one does not fit, the sequence is
// closed and that sample opens the next. Everything follows from the index, the mixture, the
// options and the seed: every rank computes the same sequences, and the number of sequences
// consumed is all that a run needs to resume.
#pragma once

#include <deque>
#include <mutex>
#include <vector>

#include "data/mixture.h"
#include "data/sample_layout.h"
#include "data/sampler.h"

namespace orchard {

struct PackedSample {
  std::int64_t sample = 0;       // number in the index
  std::int64_t pictures_of = 0;  // the sample whose pictures it shows: itself, unless swapped
  std::int32_t first_row = 0;    // in its sequence
  std::int32_t rows = 0;
  std::int32_t tiles = 0;
  std::int32_t targets = 0;
  bool operator==(const PackedSample&) const = default;
};

struct PackedSequence {
  std::vector<PackedSample> samples{};
  std::int32_t rows = 0;  // that are not padding
  std::int32_t pictures = 0;
  std::int32_t tiles = 0;
  std::int32_t targets = 0;

  // Appends a packable sample where it fits; otherwise leaves the sequence alone and says false.
  bool add(std::int64_t sample, const SampleLayout& layout);
  bool operator==(const PackedSequence&) const = default;
};

// The sequences of one stream of draws. Kept: those packed last, and where to start again every so
// often, so that any sequence is reached without packing all before it twice.
class SequenceStream {
 public:
  SequenceStream(const SampleLayout& layout, std::vector<ResolvedCategory> categories,
                 std::uint64_t seed);
  SequenceStream(SequenceStream&&) = default;

  PackedSequence sequence(std::int64_t n);

 private:
  // Everything that packing on depends on.
  struct State {
    std::int64_t sequence = 0;  // the next to pack
    Sampler::Cursor cursor;
    std::int64_t waiting = -1;  // the drawn sample that did not fit the sequence before
  };
  // Packs the next sequence into `packed`, whose memory is used again.
  void pack(State& state, PackedSequence& packed) const;

  const SampleLayout* layout_;
  std::vector<ResolvedCategory> categories_;
  Sampler sampler_;
  State state_;
  std::vector<State> checkpoints_;
  std::deque<PackedSequence> recent_;  // the last is sequence state_.sequence - 1
};

// The training sequences of a stage, without end. May be asked from several threads. The layout
// must outlive it.
class PackingPlan {
 public:
  PackingPlan(const SampleLayout& layout, const Mixture& mixture, std::uint64_t seed);

  const SampleLayout& layout() const { return layout_; }
  const ResolvedMixture& mixture() const { return mixture_; }
  PackedSequence sequence(std::int64_t n);
  std::vector<PackedSequence> sequences(std::int64_t first, std::int64_t count);

  // Shares of the mixture, samples truncated and skipped, warnings.
  std::string report() const;

 private:
  struct Place {
    int stream = 0;
    std::int64_t sequence = 0;  // in that stream
  };
  // How many of the sequences before `sequence` each stream holds.
  struct Census {
    std::int64_t sequence = 0;
    std::vector<std::int64_t> counts;
  };
  Place place_of(std::int64_t n);

  const SampleLayout& layout_;
  ResolvedMixture mixture_;
  std::mutex mutex_;
  std::vector<SequenceStream> streams_;  // one per group, or one for all when examples are mixed
  WeightedChoice choice_;                // of the stream of each sequence
  Census census_;                        // before the sequence asked for last
  std::vector<Census> checkpoints_;
};

}  // namespace orchard
