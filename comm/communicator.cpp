#include "comm/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <utility>

#include "kernels/device/device.h"

namespace orchard {
namespace {

std::span<const std::byte> bytes_of(std::span<const double> values) {
  return std::as_bytes(values);
}

std::int64_t rows_of(const ConstTensor& tensor) {
  return tensor.rank() == 0 ? 0 : tensor.dim(0);
}

// Elements of one row; of no rows the shape still says it.
std::int64_t width_of(const ConstTensor& tensor) {
  std::int64_t width = 1;
  for (int d = 1; d < tensor.rank(); ++d) width *= tensor.dim(d);
  return width;
}

}  // namespace

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this != &other) {
    const Pending old = std::move(*this);  // its destructor waits
    operation_ = std::exchange(other.operation_, nullptr);
  }
  return *this;
}

Pending::~Pending() {
  if (operation_ != nullptr && std::uncaught_exceptions() == 0) operation_->finish();
}

Communicator::Communicator(Identity identity)
    : name_(std::move(identity.name)),
      rank_(identity.rank),
      members_(std::move(identity.members)),
      nodes_(std::move(identity.nodes)),
      log_(std::move(identity.log)),
      log_group_(log_->add_group(name_, members_)) {}

Communicator::~Communicator() = default;

std::unique_ptr<Graph> Communicator::capture(Stream&, const std::function<void()>&) {
  fail("no graph holds operations of group {}: their data passes through host memory", name_);
}

void Communicator::begin_recording() {
  recorded_.emplace().op = CommOp::graph;
}

OperationLog::Request Communicator::end_recording() {
  return *std::exchange(recorded_, {});
}

OperationLog::Ticket Communicator::begin(const OperationLog::Request& request) {
  if (recorded_) {
    require(request.op != CommOp::exchange && request.op != CommOp::barrier &&
                request.op != CommOp::host,
            "{} of group {} inside a capture: a graph holds its collectives on the device",
            orchard::name_of(request.op), name_);
    recorded_->bytes += request.bytes;
    return {.group = log_group_, .op = request.op, .record = Ticket::unlogged};
  }
  last_ = log_->enqueued(log_group_, request);
  return last_;
}

std::string Communicator::last_operation() const {
  return log_->describe(last_);
}

std::unique_ptr<Communicator> Communicator::make_group(std::string_view name,
                                                       std::span<const int> places) {
  Identity identity{.name = std::string(name), .rank = -1, .members = {}, .nodes = {}, .log = log_};
  for (const int place : places) {
    require(place >= 0 && place < size(), "group {} asks for rank {} of {}, which has {}", name,
            place, name_, size());
    require(std::count(places.begin(), places.end(), place) == 1,
            "group {} has rank {} of {} more than once", name, place, name_);
    if (place == rank_) identity.rank = static_cast<int>(identity.members.size());
    identity.members.push_back(members_[static_cast<std::size_t>(place)]);
    identity.nodes.push_back(nodes_[static_cast<std::size_t>(place)]);
  }
  require(identity.rank >= 0, "rank {} of {} makes group {} without being in it", rank_, name_,
          name);
  return start_group(std::move(identity), places);
}

void Communicator::check_counts(std::string_view what, std::span<const std::int64_t> counts,
                                std::int64_t mine, std::int64_t all) const {
  require(static_cast<int>(counts.size()) == size(),
          "{} in group {} of {} ranks was given {} counts", what, name_, size(), counts.size());
  require(std::ranges::none_of(counts, [](std::int64_t n) { return n < 0; }) &&
              std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) == all &&
              counts[static_cast<std::size_t>(rank_)] == mine,
          "{} in group {}: counts [{}] do not cut {} elements so that rank {} has {}", what, name_,
          fmt::join(counts, ", "), all, rank_, mine);
}

Pending Communicator::all_reduce_sum(Stream& stream, Tensor buffer) {
  require(buffer.dtype() == DType::f32 || buffer.dtype() == DType::bf16,
          "all_reduce_sum in group {} takes f32 or bf16, not {}", name_, name_of(buffer.dtype()));
  return Pending(start_reduction(stream, {.all = buffer, .result = buffer, .counts = {}},
                                 begin({CommOp::all_reduce, buffer.dtype(), buffer.size_bytes()})));
}

Pending Communicator::reduce_scatter_sum(Stream& stream, Tensor mine, ConstTensor all,
                                         std::span<const std::int64_t> counts) {
  require(all.dtype() == DType::f32 || all.dtype() == DType::bf16,
          "reduce_scatter_sum in group {} takes f32 or bf16, not {}", name_, name_of(all.dtype()));
  require(mine.dtype() == all.dtype(), "reduce_scatter_sum in group {}: {} cannot become {}", name_,
          name_of(all.dtype()), name_of(mine.dtype()));
  if (counts.empty()) {
    even_counts_.assign(static_cast<std::size_t>(size()), mine.numel());
    counts = even_counts_;
  }
  check_counts("reduce_scatter_sum", counts, mine.numel(), all.numel());
  return Pending(start_reduction(stream, {.all = all, .result = mine, .counts = counts},
                                 begin({CommOp::reduce_scatter, all.dtype(), all.size_bytes()})));
}

Pending Communicator::all_gather(Stream& stream, Tensor all, ConstTensor mine,
                                 std::span<const std::int64_t> counts) {
  require(mine.dtype() == all.dtype(), "all_gather in group {}: {} cannot become {}", name_,
          name_of(mine.dtype()), name_of(all.dtype()));
  if (counts.empty()) {
    even_counts_.assign(static_cast<std::size_t>(size()), mine.numel());
    counts = even_counts_;
  }
  check_counts("all_gather", counts, mine.numel(), all.numel());
  return Pending(start_gathering(stream, {.all = all, .mine = mine, .counts = counts},
                                 begin({CommOp::all_gather, all.dtype(), all.size_bytes()})));
}

Pending Communicator::broadcast(Stream& stream, Tensor buffer, int root) {
  require(root >= 0 && root < size(), "broadcast from rank {} of group {}, which has {}", root,
          name_, size());
  return Pending(start_broadcast(stream, buffer, root,
                                 begin({CommOp::broadcast, buffer.dtype(), buffer.size_bytes()})));
}

Pending Communicator::all_to_all(Stream& stream, const AllToAll& rows) {
  const std::int64_t width = width_of(rows.send);
  require(rows.send.dtype() == rows.receive.dtype() && width == width_of(rows.receive),
          "all_to_all in group {}: rows of {} {} cannot become rows of {} {}", name_,
          name_of(rows.send.dtype()), rows.send.shape(), name_of(rows.receive.dtype()),
          rows.receive.shape());
  const auto at_rank = [&](std::span<const std::int64_t> counts) {
    return static_cast<int>(counts.size()) == size() ? counts[static_cast<std::size_t>(rank_)] : 0;
  };
  check_counts("all_to_all (send)", rows.send_rows, at_rank(rows.send_rows), rows_of(rows.send));
  check_counts("all_to_all (receive)", rows.receive_rows, at_rank(rows.send_rows),
               rows_of(rows.receive));
  return Pending(start_all_to_all(
      stream, rows, begin({CommOp::all_to_all, rows.send.dtype(), rows.send.size_bytes()})));
}

Pending Communicator::exchange(Stream& stream, std::span<const Outgoing> sends,
                               std::span<const Incoming> receives) {
  std::size_t bytes = 0;
  DType dtype = DType::u8;
  const int first = !receives.empty() ? receives.front().from
                    : !sends.empty()  ? sends.front().to
                                      : -1;
  const auto check = [&](const char* what, int rank, const ConstTensor& data) {
    require(rank >= 0 && rank < size(), "exchange {} rank {} of group {}, which has {}", what, rank,
            name_, size());
    dtype = data.dtype();
  };
  for (const Incoming& message : receives) check("from", message.from, message.data);
  for (const Outgoing& message : sends) {
    check("to", message.to, message.data);
    bytes += message.data.size_bytes();
  }
  const int peer = first < 0 ? -1 : members_[static_cast<std::size_t>(first)];
  return Pending(
      start_exchange(stream, sends, receives, begin({CommOp::exchange, dtype, bytes, peer})));
}

void Communicator::barrier() {
  run_barrier(begin({CommOp::barrier, DType::u8, 0}));
}

void Communicator::gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all) {
  run_host_gathering(mine, all, begin({CommOp::host, DType::u8, all.size()}));
}

void Communicator::sum_on_host(std::span<double> values) {
  host_values_.resize(values.size() * members_.size());
  gather_on_host(bytes_of(values), std::as_writable_bytes(std::span(host_values_)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = host_values_[i];
    for (std::size_t r = 1; r < members_.size(); ++r)
      values[i] += host_values_[r * values.size() + i];
  }
}

void Communicator::max_on_host(std::span<double> values) {
  host_values_.resize(values.size() * members_.size());
  gather_on_host(bytes_of(values), std::as_writable_bytes(std::span(host_values_)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = host_values_[i];
    for (std::size_t r = 1; r < members_.size(); ++r)
      values[i] = std::max(values[i], host_values_[r * values.size() + i]);
  }
}

void Communicator::all_gather_on_host(std::span<const std::int64_t> mine,
                                      std::span<std::int64_t> all) {
  require(all.size() == mine.size() * members_.size(),
          "all_gather_on_host of {} values in group {} of {} ranks into {}", mine.size(), name_,
          size(), all.size());
  gather_on_host(std::as_bytes(mine), std::as_writable_bytes(all));
}

}  // namespace orchard
