#include "parallel/expert_dispatcher.h"

#include <algorithm>

#include "kernels/permute/exchange.h"
#include "kernels/permute/permute.h"
#include "parallel/expert_routes.h"

namespace orchard {
namespace {

constexpr std::int64_t room_multiple = 256;

// Bytes of the mean message between two ranks on different nodes.
std::int64_t mean_message(const ExpertPlacement& placement, const ExpertTraffic& traffic,
                          std::int64_t row_bytes) {
  std::int64_t rows = 0, pairs = 0;
  for (int source = 0; source < placement.size(); ++source) {
    for (std::int64_t target = 0; target < placement.targets(); ++target) {
      if (placement.node_of(source) == placement.node_of(placement.place_of(target))) continue;
      rows += traffic.rows(source, target);
      pairs += target % placement.local_experts() == 0;
    }
  }
  return pairs == 0 ? 0 : rows * row_bytes / pairs;
}

}  // namespace

// What the host keeps for counted messages, where copies need not wait for it.
struct ExpertHostMemory {
  explicit ExpertHostMemory(Device& device)
      : tables(device), counts(HostAllocator<std::int32_t>(device)) {}

  TableStaging tables;
  HostVector<std::int32_t> counts;  // every rank's
};

ExpertDispatcher::ExpertDispatcher(std::int64_t experts) : placement_(experts) {}

ExpertDispatcher::~ExpertDispatcher() = default;

ExpertDispatcher::ExpertDispatcher(Device& device, Stream& stream, const ExpertPlacement& placement,
                                   Communicator& ranks, const ExpertDispatchOptions& options)
    : placement_(placement),
      options_(options),
      ranks_(&ranks),
      host_(std::make_unique<ExpertHostMemory>(device)) {
  require(ranks.size() == placement.size() && ranks.rank() == placement.place(),
          "experts are placed on {} ranks, and group {} has {}", placement.size(), ranks.name(),
          ranks.size());
  // On one rank a node, or on one node, there is nothing to put together.
  if (placement.nodes() > 1 && placement.nodes() < placement.size() &&
      options.dispatch != ExpertDispatch::direct) {
    node_ranks_ =
        ranks.make_group(ranks.name() + " of a node", placement.members(placement.node()));
  }
  std::vector<std::int32_t> host;
  for (const auto& table :
       {placement.target_table(), placement.node_table(), placement.own_node_table()})
    host.insert(host.end(), table.begin(), table.end());
  const Shape shape{static_cast<std::int64_t>(host.size())};
  tables_ = device.allocate(host.size() * sizeof(std::int32_t));
  const Tensor tables = tables_.tensor(DType::i32, shape);
  stream.copy(tables, ConstTensor(host.data(), DType::i32, shape, DeviceKind::cpu));
  stream.synchronize();
  const std::int64_t pairs = placement.experts() * placement.parts();
  const Shape pair_shape{placement.experts(), placement.parts()};
  target_table_ = tables.slice(0, pairs).reshape(pair_shape);
  node_table_ = tables.slice(pairs, pairs).reshape(pair_shape);
  own_node_table_ = tables.slice(2 * pairs, placement.targets()).reshape({placement.targets(), 1});
}

std::unique_ptr<ExpertDispatcher> ExpertDispatcher::of(Device& device, Stream& stream,
                                                       const ParallelContext& ranks,
                                                       std::int64_t experts,
                                                       const ExpertDispatchOptions& options) {
  if (experts == 0) return nullptr;
  Communicator& group = ranks[MeshGroup::expert_layer];
  return std::make_unique<ExpertDispatcher>(
      device, stream, ExpertPlacement::of(ranks.mesh(), ranks.rank(), experts, group.nodes()),
      group, options);
}

std::int64_t ExpertDispatcher::room_for(std::int64_t rows, std::int64_t even_share) {
  if (rows > room_) {
    // A quarter more than is needed now: routing changes from batch to batch.
    const std::int64_t wanted = std::max(rows + rows / 4, room_ == 0 ? even_share * 3 / 2 : 0);
    const std::int64_t before = room_;
    room_ = (wanted + room_multiple - 1) / room_multiple * room_multiple;
    if (before > 0) {
      ++growths_;
      if (on_growth_) {
        on_growth_(
            fmt::format("{} rows arrive at this rank's experts at once: buffers grow from {} "
                        "to {} rows",
                        rows, before, room_));
      }
    }
  }
  return room_;
}

ExpertWay ExpertDispatcher::way_of(const ExpertTraffic& traffic, std::int64_t row_bytes) const {
  if (!node_ranks_) return ExpertWay::direct;
  const bool by_node = options_.dispatch == ExpertDispatch::by_node ||
                       mean_message(placement_, traffic, row_bytes) < options_.small_message_bytes;
  return by_node ? ExpertWay::by_node : ExpertWay::direct;
}

ExpertDispatcher::Plan ExpertDispatcher::plan(Stream& stream, Arena& arena,
                                              const ExpertChoices& choices) {
  if (placement_.size() == 1) {
    Plan routes;
    for (const ConstTensor& part : choices.experts)
      routes.push_back(std::make_shared<LocalRoutes>(stream, arena, part, placement_.experts()));
    return routes;
  }
  return choices.most_rows > 0 ? plan_fixed(stream, arena, choices)
                               : plan_counted(stream, arena, choices);
}

ExpertDispatcher::Plan ExpertDispatcher::plan_fixed(Stream& stream, Arena& arena,
                                                    const ExpertChoices& choices) {
  const std::int64_t rows = choices.most_rows;
  const ExpertWay way = way_of(ExpertTraffic::even(placement_, rows), choices.row_bytes);
  if (way == ExpertWay::by_node) ++plans_beside_graphs_;
  std::shared_ptr<const FixedWays>& fixed = fixed_[{rows, way}];
  if (!fixed) fixed = std::make_shared<FixedWays>(stream, host_->tables, placement_, rows, way);
  const std::shared_ptr<const RowWays> ways(fixed, &fixed->ways);
  const ExpertLinks links{.layer = ranks_,
                          .node = node_ranks_.get(),
                          .overlap = options_.overlap,
                          .room = ways->expert_rows};
  Plan routes;
  for (const ConstTensor& part : choices.experts) {
    const Tensor offsets = arena.allocate(DType::i32, {placement_.targets() + 1});
    routes.push_back(std::make_shared<DirectRoutes>(
        sort_by_target(stream, arena, part, offsets, rows), links, ways));
  }
  return routes;
}

ExpertDispatcher::Plan ExpertDispatcher::plan_counted(Stream& stream, Arena& arena,
                                                      const ExpertChoices& choices) {
  ++plans_beside_graphs_;
  Plan routes;
  const auto parts = static_cast<std::int64_t>(choices.experts.size());
  const std::int64_t targets = placement_.targets(), nodes = node_ranks_ ? placement_.nodes() : 0;
  const std::int64_t stride = targets + 1 + (nodes > 0 ? nodes + 1 : 0);
  const Tensor mine = arena.allocate(DType::i32, {parts * stride});
  const Tensor all = arena.allocate(DType::i32, {placement_.size(), parts * stride});
  std::vector<ExpertSends> sends;
  for (std::int64_t part = 0; part < parts; ++part)
    sends.push_back(sort(stream, arena, choices.experts[static_cast<std::size_t>(part)],
                         mine.slice(part * stride, stride)));
  ranks_->all_gather(stream, all, mine).wait(stream);
  HostVector<std::int32_t>& gathered = host_->counts;
  gathered.resize(static_cast<std::size_t>(all.numel()));
  stream.copy(Tensor(gathered.data(), DType::i32, all.shape(), DeviceKind::cpu), all);
  stream.synchronize();   // the one wait of the host: shapes of all messages follow from here
  host_->tables.reset();  // and so have the copies of earlier tables been waited for
  const TableLoader load{stream, arena, host_->tables};

  for (std::int64_t part = 0; part < parts; ++part) {
    const ExpertTraffic traffic(
        placement_.size(), targets, nodes,
        std::span<const std::int32_t>(gathered).subspan(static_cast<std::size_t>(part * stride)),
        parts * stride);
    std::int64_t rows = 0;
    for (int source = 0; source < placement_.size(); ++source) rows += traffic.rows_of(source);
    const std::int64_t even_share =
        rows / placement_.size() + placement_.local_experts() * row_multiple;
    const ExpertLinks links{
        .layer = ranks_,
        .node = node_ranks_.get(),
        .overlap = options_.overlap,
        .room = room_for(expert_row_offsets(placement_, traffic).back(), even_share)};
    const ExpertSends& own = sends[static_cast<std::size_t>(part)];
    if (way_of(traffic, choices.row_bytes) == ExpertWay::by_node) {
      routes.push_back(
          std::make_shared<NodeRoutes>(load, placement_, traffic, own, links, own_node_table_));
    } else {
      routes.push_back(std::make_shared<DirectRoutes>(
          own, links, std::make_shared<RowWays>(load, placement_, traffic, ExpertWay::direct)));
    }
  }
  return routes;
}

ExpertSends ExpertDispatcher::sort_by_target(Stream& stream, Arena& arena, ConstTensor experts,
                                             Tensor offsets, std::int64_t target_rows) const {
  const std::int64_t tokens = experts.dim(0), slots = experts.dim(1) * placement_.parts();
  const std::int64_t rows = target_rows > 0 ? placement_.targets() * target_rows : tokens * slots;
  const Tensor targets = arena.allocate(DType::i32, {tokens, slots});
  run(stream, MapChoices{.experts = experts, .table = target_table_, .targets = targets});
  const PermutePlan plan{.experts = targets,
                         .row_offsets = offsets,
                         .source = arena.allocate(DType::i32, {rows}),
                         .slot = arena.allocate(DType::i32, {tokens, slots}),
                         .multiple = 1,
                         .group_rows = target_rows};
  run(stream, plan);
  return {.targets = targets,
          .slot = plan.slot,
          .source = plan.source,
          .offsets = plan.row_offsets,
          .node_source = {},
          .target_rows = target_rows};
}

ExpertSends ExpertDispatcher::sort(Stream& stream, Arena& arena, ConstTensor experts,
                                   Tensor offsets) const {
  const std::int64_t targets = placement_.targets();
  ExpertSends sends =
      sort_by_target(stream, arena, experts, offsets.slice(0, targets + 1), /*target_rows=*/0);
  if (!node_ranks_) return sends;
  const Shape shape = sends.targets.shape();
  const Tensor nodes = arena.allocate(DType::i32, shape);
  run(stream,
      MapChoices{
          .experts = experts, .table = node_table_, .targets = nodes, .repeats = Repeats::drop});
  const PermutePlan plan{.experts = nodes,
                         .row_offsets = offsets.slice(targets + 1, placement_.nodes() + 1),
                         .source = arena.allocate(DType::i32, {shape.numel()}),
                         .slot = arena.allocate(DType::i32, shape),
                         .multiple = 1};
  run(stream, plan);
  sends.node_source = plan.source;
  return sends;
}

}  // namespace orchard
