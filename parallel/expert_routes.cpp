#include "parallel/expert_routes.h"

#include <utility>

#include "kernels/permute/exchange.h"
#include "kernels/permute/permute.h"

namespace orchard {
LocalRoutes::LocalRoutes(Stream& stream, Arena& arena, ConstTensor experts,
                         std::int64_t experts_count) {
  const std::int64_t rows = max_expert_rows(experts.dim(0), experts.dim(1), experts_count);
  const PermutePlan plan{.experts = experts,
                         .row_offsets = arena.allocate(DType::i32, {experts_count + 1}),
                         .source = arena.allocate(DType::i32, {rows}),
                         .slot = arena.allocate(DType::i32, experts.shape())};
  run(stream, plan);
  slot_ = plan.slot;
  row_offsets_ = padded_offsets_ = plan.row_offsets;
  padded_source_ = source_ = plan.source;
}

ExpertTransfer LocalRoutes::dispatch(Stream&, Arena&, ConstTensor x) const {
  return ExpertTransfer(x);
}

ExpertTransfer LocalRoutes::collect(Stream&, Arena&, ConstTensor rows) const {
  return ExpertTransfer(rows);
}

ExpertTransfer LocalRoutes::distribute(Stream&, Arena&, ConstTensor rows) const {
  return ExpertTransfer(rows);
}

ConstTensor TableLoader::operator()(const std::vector<RowRun>& runs) const {
  constexpr std::int64_t columns = sizeof(RowRun) / sizeof(std::int32_t);
  static_assert(columns == 3);
  if (runs.empty()) return {};
  std::vector<std::int32_t> table;
  for (const RowRun& run : runs) table.insert(table.end(), {run.from, run.to, run.count});
  return (*this)(table).reshape({std::ssize(runs), columns});
}

LoadedJourney TableLoader::operator()(Journey journey) const {
  LoadedJourney loaded;
  for (const Hop& hop : journey.hops) loaded.hop_runs.push_back((*this)(hop.runs));
  loaded.arrival = (*this)(journey.arrival);
  loaded.journey = std::move(journey);
  return loaded;
}

RowWays::RowWays(const TableLoader& load, const ExpertPlacement& placement,
                 const ExpertTraffic& traffic, ExpertWay way)
    : out(load(to_experts(placement, traffic, way))),
      back(load(to_owners(placement, traffic, way))) {
  const std::vector<std::int32_t> offsets = expert_row_offsets(placement, traffic);
  row_offsets = load(offsets);
  expert_rows = offsets.back();
}

DirectRoutes::DirectRoutes(const ExpertSends& sends, const ExpertLinks& links,
                           std::shared_ptr<const RowWays> ways)
    : sends_(sends), links_(links), ways_(std::move(ways)) {
  slot_ = sends.slot;
  row_offsets_ = ways_->row_offsets;
  if (sends.target_rows == 0) return;
  padded_source_ = sends.source;
  padded_offsets_ = sends.offsets;
}

DirectRoutes::Departure DirectRoutes::depart(Stream& stream, Arena& arena, const Hop& hop,
                                             ConstTensor runs, ConstTensor rows,
                                             std::int64_t room) const {
  ConstTensor send = rows.slice(0, hop.sent);
  if (runs) {
    const Tensor ordered = arena.allocate(rows.dtype(), rows.shape().with(0, hop.sent));
    run(stream, CopyRuns{.x = rows, .runs = runs, .y = ordered});
    send = ordered;
  }
  const Tensor arriving = arena.allocate(rows.dtype(), rows.shape().with(0, room));
  Communicator& group = hop.group == HopGroup::layer ? *links_.layer : *links_.node;
  Pending pending = group.all_to_all(stream, {.send = send,
                                              .receive = arriving.slice(0, hop.received),
                                              .send_rows = hop.send_rows,
                                              .receive_rows = hop.receive_rows});
  return {arriving, std::move(pending)};
}

ExpertTransfer DirectRoutes::start(Stream& stream, Arena& arena, const LoadedJourney& way,
                                   ConstTensor rows, std::int64_t room) const {
  const std::vector<Hop>& hops = way.journey.hops;
  const auto room_of = [this, &hops, room](std::size_t hop) {
    return hop + 1 < hops.size() ? std::max(links_.room, hops[hop].received) : room;
  };
  Departure first = depart(stream, arena, hops[0], way.hop_runs[0], rows, room_of(0));
  ExpertTransfer transfer(
      std::move(first.pending),
      [this, &arena, &way, &hops, room, room_of, held = first.arriving](Stream& s) -> ConstTensor {
        Tensor here = held;
        for (std::size_t h = 1; h < hops.size(); ++h) {
          Departure next = depart(s, arena, hops[h], way.hop_runs[h], here, room_of(h));
          next.pending.wait(s);
          here = next.arriving;
        }
        if (!way.arrival) return here;
        const Tensor ordered = arena.allocate(here.dtype(), here.shape().with(0, room));
        run(s, CopyRuns{.x = here, .runs = way.arrival, .y = ordered});
        return ordered;
      });
  if (links_.overlap == Overlap::no) transfer.settle(stream);
  return transfer;
}

ExpertTransfer DirectRoutes::dispatch(Stream& stream, Arena& arena, ConstTensor x) const {
  const Tensor rows = arena.allocate(x.dtype(), {sends_.source.dim(0), x.dim(1)});
  run(stream, DispatchForward{
                  .x = x, .source = sends_.source, .row_offsets = sends_.offsets, .rows = rows});
  return start(stream, arena, ways_->out, rows, links_.room);
}

ExpertTransfer DirectRoutes::collect(Stream& stream, Arena& arena, ConstTensor rows) const {
  return start(stream, arena, ways_->back, rows, sends_.source.dim(0));
}

ExpertTransfer DirectRoutes::distribute(Stream& stream, Arena& arena, ConstTensor rows) const {
  return start(stream, arena, ways_->out, rows, links_.room);
}

NodeRoutes::NodeRoutes(const TableLoader& load, const ExpertPlacement& placement,
                       const ExpertTraffic& traffic, const ExpertSends& sends,
                       const ExpertLinks& links, ConstTensor own_node_table)
    : DirectRoutes(sends, links,
                   std::make_shared<RowWays>(load, placement, traffic, ExpertWay::by_node)),
      own_node_table_(own_node_table),
      node_targets_(static_cast<std::int64_t>(placement.members(placement.node()).size()) *
                    placement.local_experts()),
      tokens_(traffic.tokens_of(placement.place())) {
  SharedJourney shared = to_experts_once_a_node(placement, traffic);
  to_node_ = load(std::move(shared.to_node));
  unfolded_ = load(Journey{.hops = {std::move(shared.last)}, .arrival = std::move(shared.arrival)});
}

ExpertTransfer NodeRoutes::dispatch(Stream& stream, Arena& arena, ConstTensor x) const {
  const std::int64_t bytes = packed_row_bytes(x.dim(1), x.dtype(), sends_.targets.dim(1));
  const Tensor packed = arena.allocate(DType::u8, {tokens_, bytes});
  run(stream,
      PackRows{.x = x, .targets = sends_.targets, .source = sends_.node_source, .packed = packed});
  const Hop& last = to_node_.journey.hops.back();
  ExpertTransfer tokens =
      start(stream, arena, to_node_, packed, std::max(links_.room, last.received));
  // The pending first hop moves into the transfer that the caller gets.
  auto crossing = std::make_shared<ExpertTransfer>(std::move(tokens));
  return ExpertTransfer(Pending(), [this, &arena, crossing, x](Stream& s) {
    const ConstTensor here = crossing->finish(s);
    const Tensor rows = unfold(s, arena, here, x);
    return start(s, arena, unfolded_, rows, links_.room).finish(s);
  });
}

Tensor NodeRoutes::unfold(Stream& stream, Arena& arena, ConstTensor packed, ConstTensor x) const {
  const std::int64_t tokens = to_node_.journey.hops.back().received;
  const std::int64_t rows = unfolded_.journey.hops[0].sent, slots = sends_.targets.dim(1);
  const Tensor arrived = arena.allocate(x.dtype(), {tokens, x.dim(1)});
  const Tensor targets = arena.allocate(DType::i32, {tokens, slots});
  run(stream, UnpackRows{.packed = packed.slice(0, tokens), .x = arrived, .targets = targets});
  const Tensor here = arena.allocate(DType::i32, {tokens, slots});
  run(stream, MapChoices{.experts = targets, .table = own_node_table_, .targets = here});
  // GPUs plan for the worst case; the host knows how many rows there are.
  const PermutePlan plan{.experts = here,
                         .row_offsets = arena.allocate(DType::i32, {node_targets_ + 1}),
                         .source = arena.allocate(DType::i32, {tokens * slots}),
                         .slot = arena.allocate(DType::i32, {tokens, slots}),
                         .multiple = 1};
  run(stream, plan);
  const Tensor unfolded = arena.allocate(x.dtype(), {rows, x.dim(1)});
  run(stream, DispatchForward{.x = arrived,
                              .source = plan.source.slice(0, rows),
                              .row_offsets = plan.row_offsets,
                              .rows = unfolded});
  return unfolded;
}

}  // namespace orchard
