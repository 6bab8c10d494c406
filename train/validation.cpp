#include "train/validation.h"

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

// Loss of every sample in this rank's share of `sequences`.
SampleLosses sample_losses(StepRunner& runner, BatchBuilder& builder,
                           std::span<const PackedSequence> sequences, std::int64_t micro_batch,
                           const Communicator& ranks) {
  SampleLosses losses;
  const auto n = static_cast<std::int64_t>(sequences.size());
  for (std::int64_t batch = ranks.rank(); batch * micro_batch < n; batch += ranks.size()) {
    const std::int64_t first = batch * micro_batch;
    const MicroBatch micro = builder.build(
        sequences.subspan(static_cast<std::size_t>(first),
                          static_cast<std::size_t>(std::min(micro_batch, n - first))));
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

}  // namespace

ValidationReport validate(StepRunner& runner, const StageData& data, const TrainingSetIndex& index,
                          std::int64_t micro_batch, Communicator& ranks, Swap swap,
                          std::function<void(const BadSample&)> on_bad) {
  const std::unique_ptr<Device> device = make_cpu_device();
  BatchBuilder builder = data.make_builder(*device, std::move(on_bad));
  const HeldOutPlan& plan = data.held_out();
  const SampleLosses own = sample_losses(runner, builder, plan.sequences, micro_batch, ranks);

  // Sum and count of each category, then samples, own, swapped, difference and its square of the
  // pairs.
  const std::size_t categories = index.categories.size();
  std::vector<double> sums(2 * categories + 5);
  for (const auto& [sample, loss] : own) {
    sums[2 * static_cast<std::size_t>(loss.category)] += loss.sum;
    sums[2 * static_cast<std::size_t>(loss.category) + 1] += static_cast<double>(loss.targets);
  }
  if (swap == Swap::compare && !plan.pairs.empty()) {
    const std::vector<PackedSequence> sequences = plan.swapped();
    const SampleLosses swapped = sample_losses(runner, builder, sequences, micro_batch, ranks);
    double* const pairs = &sums[2 * categories];
    for (const PicturePair& pair : plan.pairs) {
      const auto a = own.find(pair.sample), b = swapped.find(pair.sample);
      if (a == own.end() || b == swapped.end()) continue;  // another rank's
      const double difference = b->second.mean() - a->second.mean();
      pairs[0] += 1;
      pairs[1] += a->second.mean();
      pairs[2] += b->second.mean();
      pairs[3] += difference;
      pairs[4] += difference * difference;
    }
  }
  ranks.sum_on_host(sums);

  ValidationReport report;
  double total = 0;
  for (std::size_t c = 0; c < categories; ++c) {
    const double targets = sums[2 * c + 1];
    if (targets == 0) continue;
    report.categories.push_back(
        {index.categories[c], sums[2 * c] / targets, std::llround(targets)});
    report.targets += std::llround(targets);
    total += sums[2 * c];
  }
  if (report.targets) report.loss = total / static_cast<double>(report.targets);
  const double* const pairs = &sums[2 * categories];
  if (const double n = pairs[0]; n > 1) {
    const double mean = pairs[3] / n;
    const double variance = std::max(0.0, (pairs[4] - n * mean * mean) / (n - 1));
    report.swap = {.samples = std::llround(n),
                   .own = pairs[1] / n,
                   .swapped = pairs[2] / n,
                   .difference = mean,
                   .standard_error = std::sqrt(variance / n)};
  }
  return report;
}

}  // namespace orchard
