#include "train/step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "parallel/parameter_collectives.h"

namespace orchard {
namespace {

class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() {
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

template <class T>
void copy_to_host(Stream& stream, std::vector<T>& host, const ConstTensor& tensor) {
  host.resize(static_cast<std::size_t>(tensor.numel()));
  stream.copy(Tensor(host.data(), tensor.dtype(), tensor.shape(), DeviceKind::cpu), tensor);
}

double sum(const std::vector<float>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

}  // namespace

StepRunner::StepRunner(Device& device, Stream& stream, const ParallelContext& ranks,
                       ParameterStore& store, const MultimodalModel& model,
                       const FlatShards* shards, Overlap overlap,
                       const ExpertDispatchOptions& experts)
    : stream_(stream),
      ranks_(ranks),
      store_(store),
      model_(model),
      overlap_(overlap),
      dispatcher_(
          ExpertDispatcher::of(device, stream, ranks, model.config().decoder.moe.experts, experts)),
      arena_(device),
      uploader_(model.config(), store.dtype()) {
  if (!shards) return;
  reducer_.emplace(*shards);
  gatherer_.emplace(*shards, overlap);
  counted_ = shards->counted_once();
  squares_ = device.allocate(counted_.size() * sizeof(float));
}

bool StepRunner::evaluates_together() const {
  if (!dispatcher_) return false;
  const std::vector<int> group = ranks_.mesh().group(MeshGroup::expert_layer, ranks_.rank());
  return std::ranges::any_of(group, [&](int rank) {
    return ranks_.mesh().coordinates(rank).data != ranks_.coordinates().data;
  });
}

LossScales StepRunner::scales(const StepTotals& totals) const {
  const auto share = [](double weight, std::int64_t count) {
    return count > 0 ? static_cast<float>(weight / static_cast<double>(count)) : 0.0f;
  };
  const MoeConfig& moe = model_.config().decoder.moe;
  return {.target = share(1, totals.targets),
          .balance = share(moe.balance_weight, totals.sequences),
          .z = share(moe.z_weight, totals.real_rows)};
}

void StepRunner::read_back(const Pass& pass, const MultimodalModel::Saved& saved) {
  if (used_ == host_.size()) host_.emplace_back();
  HostLosses& host = host_[used_++];
  copy_to_host(pass.stream, host.targets, model_.losses(saved));
  const std::vector<RouterStatistics> statistics = model_.router_statistics(saved);
  host.balance.resize(statistics.size());
  host.z.resize(statistics.size());
  host.counts.resize(statistics.size());
  for (std::size_t layer = 0; layer < statistics.size(); ++layer) {
    copy_to_host(pass.stream, host.balance[layer], statistics[layer].balance_loss);
    copy_to_host(pass.stream, host.z[layer], statistics[layer].z_loss);
    copy_to_host(pass.stream, host.counts[layer], statistics[layer].expert_counts);
  }
}

LossReport StepRunner::collect(const StepTotals& totals) {
  stream_.synchronize();
  const std::size_t layers = model_.decoder().routers().size();
  const auto experts = static_cast<std::size_t>(model_.config().decoder.moe.experts);
  // loss, balance, z, then the counts before and after capacity of every layer: one reduction for
  // all.
  std::vector<double> sums(3 + layers * 2 * experts);
  for (std::size_t m = 0; m < used_; ++m) {
    const HostLosses& host = host_[m];
    sums[0] += sum(host.targets);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      sums[1] += sum(host.balance[layer]);
      sums[2] += sum(host.z[layer]);
      for (std::size_t i = 0; i < 2 * experts; ++i)
        sums[3 + layer * 2 * experts + i] += host.counts[layer][i];
    }
  }
  used_ = 0;
  own_loss_ = sums[0];
  // Tensor ranks all have the losses of their replica.
  ranks_[MeshGroup::data].sum_on_host(sums);
  const auto mean = [](double total, std::int64_t count) {
    return count ? total / static_cast<double>(count) : 0.0;
  };
  LossReport report{.loss = mean(sums[0], totals.targets),
                    .balance_loss = mean(sums[1], totals.sequences),
                    .z_loss = mean(sums[2], totals.real_rows)};
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const double* const before = &sums[3 + layer * 2 * experts];
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

void StepRunner::require_finite_loss(double loss) const {
  // The sum over ranks is the same everywhere, so all ranks take this decision alike.
  if (std::isfinite(loss)) return;
  Communicator& replicas = ranks_[MeshGroup::data];
  const std::string operation = replicas.last_operation();
  double first = std::isfinite(own_loss_) ? -1.0 * replicas.size() : -1.0 * replicas.rank();
  replicas.max_on_host({&first, 1});
  const auto place = static_cast<std::size_t>(-first);
  const std::string who = place < replicas.members().size()
                              ? ranks_.mesh().name(replicas.members()[place])
                              : "no rank alone";
  fail("the loss is {} (that of {}, in {}): lower the learning rate, or look for bad data", loss,
       who, operation);
}

void StepRunner::require_finite_norm(double norm, std::int64_t step) const {
  if (std::isfinite(norm)) return;  // a sum over all ranks, so all decide alike
  const std::optional<GradientFault> fault = reducer_->evidence().first_fault(stream_);
  const std::string cause =
      fault ? fmt::format("that of {} was not finite on {} before {}", fault->parameter,
                          ranks_.mesh().name(fault->rank), fault->operation)
            : "no rank's own gradients are";
  fail("the gradient norm of step {} is {} ({}): lower the learning rate, or look for bad data",
       step, norm, cause);
}

StepReport StepRunner::accumulate(std::span<const MicroBatch> micro_batches,
                                  const StepTotals& totals, std::span<const RoutingReplay> replay) {
  require(replay.empty() || replay.size() == micro_batches.size(),
          "{} micro-batches cannot follow the routing of {}", micro_batches.size(), replay.size());
  require(reducer_.has_value(), "this runner was made without shards, to evaluate alone");
  StepReport report;
  store_.zero_gradients(stream_);
  reducer_->begin(stream_);
  for (std::size_t m = 0; m < micro_batches.size(); ++m) {
    arena_.reset();
    const DeviceBatch batch = uploader_.upload(stream_, arena_, micro_batches[m]);
    Pass pass{.stream = stream_,
              .arena = arena_,
              .batch = batch,
              .scales = scales(totals),
              .replay = replay.empty() ? nullptr : &replay[m],
              .parallel = &ranks_,
              .dispatcher = dispatcher_.get(),
              .overlap = overlap_};
    MultimodalModel::Saved saved;
    {
      const Stopwatch watch(report.seconds.forward);
      model_.forward(pass, saved);
      read_back(pass, saved);
    }
    const Stopwatch watch(report.seconds.backward);
    if (m + 1 == micro_batches.size() && overlap_ == Overlap::yes) pass.gradients = &*reducer_;
    model_.backward(pass, saved);
    stream_.synchronize();
  }
  {
    const Stopwatch watch(report.seconds.reduce);
    reducer_->finish(stream_);
  }
  report.losses = collect(totals);
  require_finite_loss(report.losses.loss);
  return report;
}

StepReport StepRunner::train(std::span<const MicroBatch> micro_batches, const StepTotals& totals,
                             Optimizer& optimizer, double learning_rate, std::int64_t step,
                             std::span<const RoutingReplay> replay) {
  StepReport report = accumulate(micro_batches, totals, replay);
  const Stopwatch watch(report.seconds.optimizer);
  report.gradient_norm =
      gradient_norm(stream_, ranks_[MeshGroup::world], store_.flat_gradients(), counted_,
                    squares_.tensor(DType::f32, {std::ssize(counted_)}));
  require_finite_norm(report.gradient_norm, step);
  optimizer.update(stream_, learning_rate, report.gradient_norm, step, &*gatherer_);
  gatherer_->finish(stream_);
  stream_.synchronize();
  return report;
}

std::vector<float> StepRunner::evaluate(const MicroBatch& micro_batch) {
  arena_.reset();
  const DeviceBatch batch = uploader_.upload(stream_, arena_, micro_batch);
  Pass pass{.stream = stream_,
            .arena = arena_,
            .batch = batch,
            .purpose = Purpose::evaluate,
            .parallel = &ranks_,
            .dispatcher = dispatcher_.get()};
  MultimodalModel::Saved saved;
  model_.forward(pass, saved);
  std::vector<float> losses;
  copy_to_host(stream_, losses, model_.losses(saved));
  stream_.synchronize();
  losses.resize(static_cast<std::size_t>(batch.targets));
  return losses;
}

}  // namespace orchard
