#include "data/packing.h"

#include <fmt/core.h>

#include <utility>

#include "data/counter_hash.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

// Packing on from a checkpoint costs at most this many sequences, well under a millisecond each.
constexpr std::int64_t checkpoint_interval = 1024;
// Covers the distance between the step being trained and the batches being prepared.
constexpr std::int64_t recent_sequences = 4096;

// The checkpoint taken last before sequence n or at it; none when no work has come that far.
template <class State>
const State* checkpoint_before(std::int64_t n, const std::vector<State>& checkpoints) {
  const auto i = static_cast<std::size_t>(n / checkpoint_interval);
  return i < checkpoints.size() ? &checkpoints[i] : nullptr;
}

std::vector<SequenceStream> make_streams(const SampleLayout& layout, const ResolvedMixture& mixture,
                                         std::uint64_t seed) {
  std::vector<SequenceStream> streams;
  if (mixture.unit == MixingUnit::sequence) {
    for (const ResolvedGroup& group : mixture.groups) {
      streams.emplace_back(layout, group.categories, counter_hash(seed, name_hash(group.name)));
    }
    return streams;
  }
  std::vector<ResolvedCategory> all;
  for (const ResolvedGroup& group : mixture.groups) {
    for (ResolvedCategory category : group.categories) {
      category.share *= group.share;
      all.push_back(std::move(category));
    }
  }
  streams.emplace_back(layout, std::move(all), seed);
  return streams;
}

std::vector<double> stream_shares(const ResolvedMixture& mixture) {
  if (mixture.unit == MixingUnit::example) return {1.0};
  std::vector<double> shares;
  for (const ResolvedGroup& group : mixture.groups) shares.push_back(group.share);
  return shares;
}

}  // namespace

bool PackedSequence::add(std::int64_t sample, const SampleLayout& layout) {
  const SampleExtent& extent = layout.extent(sample);
  if (rows + extent.rows > layout.options().length ||
      pictures + extent.pictures > layout.options().max_pictures) {
    return false;
  }
  samples.push_back({sample, sample, rows, extent.rows, extent.tiles, extent.targets});
  rows += extent.rows;
  pictures += extent.pictures;
  tiles += extent.tiles;
  targets += extent.targets;
  return true;
}

SequenceStream::SequenceStream(const SampleLayout& layout, std::vector<ResolvedCategory> categories,
                               std::uint64_t seed)
    : layout_(&layout),
      categories_(std::move(categories)),
      sampler_(categories_, seed),
      state_{.cursor = sampler_.begin()} {}

void SequenceStream::pack(State& state, PackedSequence& packed) const {
  packed.samples.clear();
  packed.rows = packed.pictures = packed.tiles = packed.targets = 0;
  if (state.waiting >= 0) packed.add(state.waiting, *layout_);
  do {
    state.waiting = sampler_.next(state.cursor);
  } while (packed.add(state.waiting, *layout_));
  ++state.sequence;
}

PackedSequence SequenceStream::sequence(std::int64_t n) {
  require(n >= 0, "there is no packed sequence {}", n);
  const State* const checkpoint = checkpoint_before(n, checkpoints_);
  if (n < state_.sequence - static_cast<std::int64_t>(recent_.size()) ||
      (checkpoint && checkpoint->sequence > state_.sequence)) {
    state_ = *checkpoint;
    recent_.clear();
  }
  PackedSequence packed;
  while (state_.sequence <= n) {
    if (state_.sequence == checkpoint_interval * static_cast<std::int64_t>(checkpoints_.size())) {
      checkpoints_.push_back(state_);
    }
    const bool keep = state_.sequence + recent_sequences > n;
    pack(state_, packed);
    if (!keep) {
      recent_.clear();
      continue;
    }
    recent_.push_back(packed);
    if (static_cast<std::int64_t>(recent_.size()) > recent_sequences) recent_.pop_front();
  }
  return recent_[recent_.size() - static_cast<std::size_t>(state_.sequence - n)];
}

PackingPlan::PackingPlan(const SampleLayout& layout, const Mixture& mixture, std::uint64_t seed)
    : layout_(layout),
      mixture_(resolve(mixture, layout.index(), layout.packable(Split::train))),
      streams_(make_streams(layout, mixture_, seed)),
      choice_(stream_shares(mixture_), counter_hash(seed, 1)),
      census_{0, std::vector<std::int64_t>(streams_.size())} {}

PackingPlan::Place PackingPlan::place_of(std::int64_t n) {
  if (streams_.size() == 1) return {0, n};
  const Census* const checkpoint = checkpoint_before(n, checkpoints_);
  if (n < census_.sequence || (checkpoint && checkpoint->sequence > census_.sequence)) {
    census_ = *checkpoint;
  }
  while (true) {
    if (census_.sequence == checkpoint_interval * static_cast<std::int64_t>(checkpoints_.size())) {
      checkpoints_.push_back(census_);
    }
    if (census_.sequence == n) break;
    ++census_.counts[static_cast<std::size_t>(choice_(census_.sequence++))];
  }
  const int stream = choice_(n);
  return {stream, census_.counts[static_cast<std::size_t>(stream)]};
}

PackedSequence PackingPlan::sequence(std::int64_t n) {
  require(n >= 0, "there is no packed sequence {}", n);
  const std::lock_guard lock(mutex_);
  const Place place = place_of(n);
  return streams_[static_cast<std::size_t>(place.stream)].sequence(place.sequence);
}

std::vector<PackedSequence> PackingPlan::sequences(std::int64_t first, std::int64_t count) {
  std::vector<PackedSequence> packed;
  for (std::int64_t n = first; n < first + count; ++n) packed.push_back(sequence(n));
  return packed;
}

std::string PackingPlan::report() const {
  const PackabilityCounts counts = layout_.count(Split::train);
  return fmt::format(
      "{}{} samples are packed whole, {} lose text at the end of a sequence of {} rows; "
      "skipped: {} whose pictures do not fit a sequence, {} whose answers do not, {} empty\n",
      mixture_.report(), counts.whole, counts.truncated, layout_.options().length,
      counts.pictures_too_large, counts.answer_too_long, counts.empty);
}

}  // namespace orchard
