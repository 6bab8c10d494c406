#include "train/validation.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "train/pipeline_pictures.h"

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

struct Evaluation {
  StepRunner& runner;
  BatchBuilder& builder;
  BatchBuilder& helper;  // of batches whose bad samples their own rank reports
  std::int64_t micro_batch;
  const Communicator& ranks;
  const ProgressHook& progress;

  void tell(std::int64_t done, std::int64_t total) const {
    if (progress) progress(done, total);
  }
  // Of this rank's pipeline, whose stages all call it together.
  MicroBatch build(BatchBuilder& with, std::span<const PackedSequence> sequences) const {
    MicroBatch batch = with.build(sequences);
    share_bad_documents(runner.ranks(), {&batch, 1});
    return batch;
  }
};

// Micro-batches are dealt out in turn: batch b to rank b % size. Loss of every sample in this rank's;
// of swapped ones, of micro-batches with any. Where ranks evaluate together, one that has nothing
// left helps the others: it goes along with a micro-batch of theirs, and forgets the result.
SampleLosses sample_losses(const Evaluation& with, std::span<const PackedSequence> sequences,
                           Which which) {
  const std::int64_t micro_batch = with.micro_batch;
  SampleLosses losses;
  const auto n = static_cast<std::int64_t>(sequences.size());
  const std::int64_t batches = (n + micro_batch - 1) / micro_batch;
  const auto batch_at = [&](std::int64_t batch) {
    const std::int64_t first = batch * micro_batch;
    return sequences.subspan(static_cast<std::size_t>(first),
                             static_cast<std::size_t>(std::min(micro_batch, n - first)));
  };
  const auto is_wanted = [&](std::int64_t batch) {
    return batch < batches &&
           (which == Which::all || std::ranges::any_of(batch_at(batch), shows_others_pictures));
  };
  for (std::int64_t round = 0; round < batches; round += with.ranks.size()) {
    with.tell(round, batches);
    const std::int64_t own = round + with.ranks.rank();
    if (!is_wanted(own)) {
      std::int64_t other = round;
      while (other < round + with.ranks.size() && !is_wanted(other)) ++other;
      if (with.runner.evaluates_together() && other < round + with.ranks.size())
        with.runner.evaluate(with.build(with.helper, batch_at(other)));
      continue;
    }
    const MicroBatch micro = with.build(with.builder, batch_at(own));
    const std::vector<float> values = with.runner.evaluate(micro);
    std::size_t next = 0;
    for (std::size_t row = 0; row < micro.targets.size(); ++row) {
      if (micro.targets[row] < 0) continue;
      SampleLoss& loss = losses[micro.sample[row]];
      loss.sum += values[next++];
      ++loss.targets;
      loss.category = micro.category[row];
    }
  }
  with.tell(batches, batches);
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
                          Communicator& ranks, Swap swap,
                          std::function<void(const BadSample&)> on_bad,
                          const ProgressHook& progress) {
  const std::unique_ptr<Device> device = make_cpu_device();
  const PictureContent pictures = picture_content(runner.ranks());
  BatchBuilder builder = data.make_builder(*device, std::move(on_bad), pictures);
  BatchBuilder helper = data.make_builder(
      *device, [](const BadSample&) {}, pictures);
  const Evaluation with{runner, builder, helper, data.micro_batch(), ranks, progress};
  const HeldOutPlan& plan = data.held_out();
  const SampleLosses own = sample_losses(with, plan.sequences, Which::all);

  std::vector<Sums> sums(index.categories.size());
  for (const auto& [sample, loss] : own) {
    Sums& category = sums[static_cast<std::size_t>(loss.category)];
    category.loss += loss.sum;
    category.targets += static_cast<double>(loss.targets);
  }
  if (swap == Swap::compare && !plan.pairs.empty()) {
    const std::vector<PackedSequence> sequences = plan.swapped();
    const SampleLosses swapped = sample_losses(with, sequences, Which::swapped);
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
