#include "train/step_losses.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "train/to_host.h"

namespace orchard {
namespace {

constexpr std::size_t first_count = 3;  // place of the counts behind the three losses

double sum(const HostVector<float>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

}  // namespace

void StepLosses::begin(std::size_t micro_batches) {
  micro_batches_ = micro_batches;
  while (host_.size() < micro_batches)
    host_.emplace_back(device_, model_.decoder().routers().size());
}

void StepLosses::read_back(const Pass& pass, const MultimodalModel::Saved& saved,
                           std::size_t micro_batch) {
  HostLosses& host = host_.at(micro_batch);
  if (const ConstTensor losses = model_.losses(saved))
    copy_to_host(pass.stream, host.targets, losses);
  std::size_t layer = model_.first_sparse_layer(saved);
  for (const RouterStatistics& statistics : model_.router_statistics(saved)) {
    LayerLosses& losses = host.layers.at(layer++);
    copy_to_host(pass.stream, losses.balance, statistics.balance_loss);
    copy_to_host(pass.stream, losses.z, statistics.z_loss);
    copy_to_host(pass.stream, losses.counts, statistics.expert_counts);
  }
}

std::vector<double> StepLosses::own_sums() const {
  const std::size_t layers = model_.decoder().routers().size();
  const auto counts = 2 * static_cast<std::size_t>(model_.config().decoder.moe.experts);
  std::vector<double> sums(first_count + layers * counts);
  for (std::size_t m = 0; m < micro_batches_; ++m) {
    const HostLosses& host = host_[m];
    sums[0] += sum(host.targets);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      const LayerLosses& losses = host.layers[layer];
      sums[1] += sum(losses.balance);
      sums[2] += sum(losses.z);
      for (std::size_t i = 0; i < losses.counts.size(); ++i)
        sums[first_count + layer * counts + i] += losses.counts[i];
    }
  }
  return sums;
}

LossReport StepLosses::collect(const StepTotals& totals) const {
  std::vector<double> sums = own_sums();
  const double own = sums[0];
  // Tensor ranks all have the losses of their replica; pipeline stages have a part each.
  ranks_[MeshGroup::data].sum_on_host(sums);
  if (ranks_.stages().ranks() > 1) ranks_[MeshGroup::pipeline].sum_on_host(sums);
  const auto mean = [](double total, std::int64_t count) {
    return count ? total / static_cast<double>(count) : 0.0;
  };
  LossReport report{.loss = mean(sums[0], totals.targets),
                    .balance_loss = mean(sums[1], totals.sequences),
                    .z_loss = mean(sums[2], totals.real_rows)};
  require_finite(report.loss, own);
  const auto experts = static_cast<std::size_t>(model_.config().decoder.moe.experts);
  for (std::size_t at = first_count; at < sums.size(); at += 2 * experts) {
    const double* const before = &sums[at];
    const double* const after = before + experts;
    const double choices = std::accumulate(before, after, 0.0);
    std::vector<double>& load = report.expert_load.emplace_back(before, after);
    for (double& share : load) share /= std::max(choices, 1.0);
    std::vector<double>& lost = report.expert_dropped.emplace_back(experts);
    for (std::size_t e = 0; e < experts; ++e)
      lost[e] = before[e] > 0 ? 1 - after[e] / before[e] : 0;
    report.dropped.push_back(1 -
                             std::accumulate(after, after + experts, 0.0) / std::max(choices, 1.0));
  }
  return report;
}

void StepLosses::require_finite(double loss, double own) const {
  // The sum over ranks is the same everywhere, so all ranks take this decision alike.
  if (std::isfinite(loss)) return;
  const std::string operation = ranks_[MeshGroup::data].last_operation();
  Communicator& world = ranks_[MeshGroup::world];
  double first = std::isfinite(own) ? -1.0 * world.size() : -1.0 * world.rank();
  world.max_on_host({&first, 1});
  const int rank = static_cast<int>(-first);
  const std::string who = rank < world.size() ? ranks_.mesh().name(rank) : "no rank alone";
  fail("the loss is {} (that of {}, in {}): lower the learning rate, or look for bad data", loss,
       who, operation);
}

}  // namespace orchard
