#include "train/validation.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace orchard {
namespace {

struct SampleLoss {
  double sum = 0;
  std::int64_t targets = 0;
  std::int32_t category = -1;
  double mean() const { return targets ? sum / static_cast<double>(targets) : 0; }
};

using SampleLosses = std::map<std::int64_t, SampleLoss>;  // by number in the index

enum class Which : std::uint8_t { all, swapped };

bool shows_others_pictures(const PackedSequence& sequence) {
  return std::any_of(sequence.samples.begin(), sequence.samples.end(),
                     [](const PackedSample& s) { return s.pictures_of != s.sample; });
}

// Loss of every sample in this rank's share of `sequences`; of swapped ones, of micro-batches with
// any.
SampleLosses sample_losses(StepRunner& runner, BatchBuilder& builder,
                           std::span<const PackedSequence> sequences, Which which,
                           std::int64_t micro_batch, const Communicator& ranks) {
  SampleLosses losses;
  const auto n = static_cast<std::int64_t>(sequences.size());
  for (std::int64_t batch = ranks.rank(); batch * micro_batch < n; batch += ranks.size()) {
    const std::int64_t first = batch * micro_batch;
    const auto mine = sequences.subspan(static_cast<std::size_t>(first),
                                        static_cast<std::size_t>(std::min(micro_batch, n - first)));
    if (which == Which::swapped && std::none_of(mine.begin(), mine.end(), shows_others_pictures))
      continue;
    const MicroBatch micro = builder.build(mine);
    const std::vector<float> values = runner.evaluate(micro);
    std::size_t next = 0;
    for (std::size_t row = 0; row < micro.targets.size(); ++row) {
      if (micro.targets[row] < 0) continue;
      SampleLoss& loss = losses[micro.sample[row]];
      loss.sum += values[next++];
      ++loss.targets;
      loss.category = micro.category[row];
    }
  }
  return losses;
}

// What each category contributes: sums that add up over ranks and categories.
struct Sums {
  double loss = 0, targets = 0;                                         // over targets
  double pairs = 0, own = 0, swapped = 0, difference = 0, squared = 0;  // over pairs

  Sums& operator+=(const Sums& other) {
    loss += other.loss, targets += other.targets;
    pairs += other.pairs, own += other.own, swapped += other.swapped;
    difference += other.difference, squared += other.squared;
    return *this;
  }

  SwapReport swap() const {
    if (pairs < 2) return {.samples = std::llround(pairs)};
    const double mean = difference / pairs;
    const double variance = std::max(0.0, (squared - pairs * mean * mean) / (pairs - 1));
    return {.samples = std::llround(pairs),
            .own = own / pairs,
            .swapped = swapped / pairs,
            .difference = mean,
            .standard_error = std::sqrt(variance / pairs)};
  }
};
static_assert(sizeof(Sums) == 7 * sizeof(double), "a row of doubles, summed over ranks as such");

}  // namespace

ValidationReport validate(StepRunner& runner, const StageData& data, const TrainingSetIndex& index,
                          std::int64_t micro_batch, Communicator& ranks, Swap swap,
                          std::function<void(const BadSample&)> on_bad) {
  const std::unique_ptr<Device> device = make_cpu_device();
  BatchBuilder builder = data.make_builder(*device, std::move(on_bad));
  const HeldOutPlan& plan = data.held_out();
  const SampleLosses own =
      sample_losses(runner, builder, plan.sequences, Which::all, micro_batch, ranks);

  std::vector<Sums> sums(index.categories.size());
  for (const auto& [sample, loss] : own) {
    Sums& category = sums[static_cast<std::size_t>(loss.category)];
    category.loss += loss.sum;
    category.targets += static_cast<double>(loss.targets);
  }
  if (swap == Swap::compare && !plan.pairs.empty()) {
    const std::vector<PackedSequence> sequences = plan.swapped();
    const SampleLosses swapped =
        sample_losses(runner, builder, sequences, Which::swapped, micro_batch, ranks);
    for (const PicturePair& pair : plan.pairs) {
      const auto a = own.find(pair.sample), b = swapped.find(pair.sample);
      if (a == own.end() || b == swapped.end()) continue;  // another rank's
      const double difference = b->second.mean() - a->second.mean();
      sums[static_cast<std::size_t>(a->second.category)] += {.pairs = 1,
                                                             .own = a->second.mean(),
                                                             .swapped = b->second.mean(),
                                                             .difference = difference,
                                                             .squared = difference * difference};
    }
  }
  ranks.sum_on_host({&sums.data()->loss, sums.size() * sizeof(Sums) / sizeof(double)});

  ValidationReport report;
  Sums all;
  for (std::size_t c = 0; c < sums.size(); ++c) {
    if (sums[c].targets == 0) continue;
    report.categories.push_back({.category = index.categories[c],
                                 .loss = sums[c].loss / sums[c].targets,
                                 .targets = std::llround(sums[c].targets),
                                 .swap = sums[c].swap()});
    all += sums[c];
  }
  report.targets = std::llround(all.targets);
  if (report.targets) report.loss = all.loss / all.targets;
  report.swap = all.swap();
  return report;
}

}  // namespace orchard
