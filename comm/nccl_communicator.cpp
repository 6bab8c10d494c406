#include "comm/nccl_communicator.h"

#include <algorithm>
#include <exception>

#include "comm/single_communicator.h"
#include "kernels/collective/rank_sum.h"

namespace orchard {
namespace {

// Up to here a second trip costs more than sending everybody everything: on NVLink a trip takes some
// 10 µs, in which 1 MB and more crosses.
constexpr std::size_t replicated_bytes = std::size_t{64} << 10;
// Elements: pieces begin where kernels read 16 bytes at a time.
constexpr std::int64_t piece_alignment = 32;

std::int64_t divided_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Piece i when n is cut in `of`.
std::int64_t part(std::int64_t n, std::int64_t i, std::int64_t of) {
  return n * i / of;
}

std::int64_t segments_of(std::size_t bytes, std::size_t segment_bytes) {
  return std::max<std::int64_t>(
      1, divided_up(static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(segment_bytes)));
}

Tensor flat(const Tensor& tensor) {
  return tensor.reshape({tensor.shape().numel()});
}
ConstTensor flat(const ConstTensor& tensor) {
  return tensor.reshape({tensor.shape().numel()});
}

// The calls between two braces are one.
class Together {
 public:
  explicit Together(NcclLibrary& library) : library_(library) { library_.group_begin(); }
  void end() { library_.group_end(); }

 private:
  NcclLibrary& library_;
};

// A graph whose replays are operations of a group.
class CapturedCollectives final : public Graph {
 public:
  CapturedCollectives(NcclCommunicator& group, std::unique_ptr<Graph> graph,
                      const OperationLog::Request& request)
      : group_(group), graph_(std::move(graph)), request_(request) {}

  void replay(Stream& stream) override { group_.replay(stream, *graph_, request_); }

 private:
  NcclCommunicator& group_;
  std::unique_ptr<Graph> graph_;
  OperationLog::Request request_;
};

}  // namespace

std::unique_ptr<Communicator> MpiCommunicator::over_nccl(const NcclContext& context) {
  MPI_Comm copy = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(communicator_, &copy), "MPI_Comm_dup");
  auto engine = std::make_shared<MpiEngine>();
  // Other ranks may wait for what this one has queued, while it waits for them.
  if (context.device.kind() == DeviceKind::simt)
    engine->while_waiting([&device = context.device] { device.advance(); });
  return std::make_unique<NcclCommunicator>(
      Identity{.name = name(),
               .rank = rank(),
               .members = {members().begin(), members().end()},
               .nodes = {nodes().begin(), nodes().end()},
               .log = shared_log()},
      copy, std::move(engine), context, std::make_shared<NcclCommunicator::Capture>());
}

std::unique_ptr<Communicator> make_nccl_world(Communicator& world, const NcclContext& context) {
  auto* const ranks = dynamic_cast<MpiCommunicator*>(&world);
  require(ranks != nullptr, "group {} of {} ranks cannot go over NCCL: it is not one of MPI",
          world.name(), world.size());
  return ranks->over_nccl(context);
}

NcclCommunicator::NcclCommunicator(Identity identity, MPI_Comm communicator,
                                   std::shared_ptr<MpiEngine> engine, const NcclContext& context,
                                   std::shared_ptr<Capture> capture)
    : MpiCommunicator(std::move(identity), communicator, std::move(engine)),
      context_(context),
      capture_(std::move(capture)),
      owner_{.communicator = this, .device = &context_.device},
      collectives_(connect()),
      messages_{connect(), connect()} {}

NcclCommunicator::~NcclCommunicator() {
  NcclLane* const lanes[] = {&collectives_, &messages_[upwards], &messages_[downwards]};
  bool in_order = std::uncaught_exceptions() == 0;
  try {
    for (NcclLane* const lane : lanes)
      if (in_order) lane->stream->synchronize();
  } catch (const Error&) {
    in_order = false;  // whoever waited for the operation has been told
  }
  for (NcclLane* const lane : lanes) {
    if (in_order) {
      context_.library->disconnect(lane->library.handle);
    } else {
      context_.library->abort(lane->library.handle);
    }
  }
}

NcclLane NcclCommunicator::connect() {
  NcclLibrary::Id id;
  if (rank() == 0) id = context_.library->make_id();
  check_mpi(MPI_Bcast(id.bytes.data(), static_cast<int>(id.bytes.size()), MPI_BYTE, 0, mpi()),
            "MPI_Bcast");
  NcclLane lane{.library = {.handle = context_.library->connect(id, rank(), size())},
                .stream = context_.device.make_stream()};
  lane.library.stream = lane.stream.get();
  return lane;
}

std::unique_ptr<Communicator> NcclCommunicator::start_group(Identity identity,
                                                            std::span<const int> places) {
  if (places.size() == 1) return std::make_unique<SingleCommunicator>(std::move(identity));
  return std::make_unique<NcclCommunicator>(std::move(identity), make_mpi_group(places), engine(),
                                            context_, capture_);
}

bool NcclCommunicator::takes(const Stream& stream,
                             std::initializer_list<ConstTensor> tensors) const {
  return stream.device().kind() == context_.device.kind() &&
         std::ranges::none_of(tensors, [](const ConstTensor& tensor) {
           return tensor.numel() > 0 && tensor.device() == DeviceKind::cpu;
         });
}

void NcclCommunicator::settle() {
  if (capture_->by != nullptr) return;
  for (const NcclLane* const lane : {&collectives_, &messages_[upwards], &messages_[downwards]})
    context_.library->check(lane->library.handle);
  std::erase_if(under_way_, [&](NcclOperation* operation) {
    if (!operation->is_done()) return false;
    log().ended(operation->ticket());
    operation->end();
    return true;
  });
}

void NcclCommunicator::progress() {
  if (capture_->by != nullptr) return;
  MpiCommunicator::progress();
  context_.device.advance();
  settle();
}

NcclOperation& NcclCommunicator::begin(Stream& stream, const Ticket& ticket) {
  require(capture_->by == nullptr || capture_->by == this,
          "group {} communicates inside a capture of group {}, and a graph holds operations of one",
          name(), capture_->by ? capture_->by->name() : "");
  settle();
  NcclOperation& operation = operations_.take(owner_);
  operation.begin(stream, ticket);
  if (capture_->by == nullptr) {
    under_way_.push_back(&operation);
  } else {
    operation.end();  // nobody will see it done
  }
  return operation;
}

Communicator::Started NcclCommunicator::end(NcclOperation& operation) {
  operation.leave(collectives_);
  return &operation;
}

// ---- graphs ------------------------------------------------------------------------------------

std::unique_ptr<Graph> NcclCommunicator::capture(Stream& stream,
                                                 const std::function<void()>& work) {
  require(capture_->by == nullptr, "a capture inside a capture");
  capture_->by = this;
  begin_recording();
  OperationLog::Request recorded;
  const auto end = [&] {
    recorded = end_recording();
    capture_->by = nullptr;
  };
  std::unique_ptr<Graph> graph;
  try {
    graph = stream.device().capture(stream, work);
  } catch (...) {
    end();
    throw;
  }
  end();
  return std::make_unique<CapturedCollectives>(*this, std::move(graph), recorded);
}

void NcclCommunicator::replay(Stream& stream, Graph& graph, const OperationLog::Request& request) {
  const Ticket ticket = Communicator::begin(request);
  NcclOperation& operation = begin(stream, ticket);
  operation.take(collectives_, stream);
  log().started(ticket);
  graph.replay(stream);
  operation.give_back(collectives_, stream);
}

// ---- collectives -------------------------------------------------------------------------------

Communicator::Started NcclCommunicator::start_reduction(Stream& stream, const Reduction& reduction,
                                                        Ticket ticket) {
  if (!takes(stream, {reduction.all, reduction.result}))
    return MpiCommunicator::start_reduction(stream, reduction, ticket);
  NcclOperation& operation = begin(stream, ticket);
  operation.enter(collectives_);
  log().started(ticket);
  if (reduction.all.numel() == 0) return end(operation);
  if (reduction.counts.empty()) {
    all_reduce(flat(reduction.result));
  } else {
    reduce_scatter(flat(reduction.all), flat(reduction.result), reduction.counts);
  }
  return end(operation);
}

void NcclCommunicator::all_reduce(const Tensor& buffer) {
  const std::int64_t elements = buffer.numel();
  pieces_.resize(static_cast<std::size_t>(size()));
  if (buffer.size_bytes() * static_cast<std::size_t>(size() - 1) <= replicated_bytes) {
    std::ranges::fill(pieces_, Piece{0, elements});
    scatter_and_sum(buffer, buffer);
    return;
  }
  const std::int64_t segments = segments_of(buffer.size_bytes(), context_.segment_bytes);
  for (std::int64_t s = 0; s < segments; ++s) {
    const std::int64_t first = part(elements, s, segments), last = part(elements, s + 1, segments);
    const std::int64_t units = divided_up(last - first, piece_alignment);
    const auto edge = [&](int r) {
      return std::min(first + part(units, r, size()) * piece_alignment, last);
    };
    for (int r = 0; r < size(); ++r) pieces_[static_cast<std::size_t>(r)] = {edge(r), edge(r + 1)};
    const Piece own = pieces_[static_cast<std::size_t>(rank())];
    scatter_and_sum(buffer, buffer.slice(own.begin, own.count()));
    gather(buffer);
  }
}

void NcclCommunicator::reduce_scatter(const ConstTensor& all, const Tensor& mine,
                                      std::span<const std::int64_t> counts) {
  pieces_.resize(static_cast<std::size_t>(size()));
  const std::int64_t longest = *std::ranges::max_element(counts);
  const std::int64_t segments = segments_of(
      static_cast<std::size_t>(longest * size()) * size_of(all.dtype()), context_.segment_bytes);
  for (std::int64_t s = 0; s < segments; ++s) {
    std::int64_t first = 0;  // element of the rank's part
    for (std::size_t r = 0; r < counts.size(); ++r) {
      pieces_[r] = {first + part(counts[r], s, segments), first + part(counts[r], s + 1, segments)};
      first += counts[r];
    }
    const std::int64_t done = part(mine.numel(), s, segments);
    scatter_and_sum(all, mine.slice(done, part(mine.numel(), s + 1, segments) - done));
  }
}

void NcclCommunicator::scatter_and_sum(const ConstTensor& all, const Tensor& result) {
  const Piece own = pieces_[static_cast<std::size_t>(rank())];
  const std::size_t element = size_of(all.dtype());
  const std::int64_t stride = divided_up(own.count(), piece_alignment) * piece_alignment;
  // In stream order: the next segment receives here after this one has been added up.
  std::byte* const scratch =
      collectives_.stream->workspace(static_cast<std::size_t>(size() * stride) * element);
  NcclLibrary& nccl = *context_.library;
  Together calls(nccl);
  // Each rank turns to its right-hand neighbour first, so that not all of them call on one.
  for (int i = 1; i < size(); ++i) {
    const int to = (rank() + i) % size(), from = (rank() + size() - i) % size();
    const Piece theirs = pieces_[static_cast<std::size_t>(to)];
    if (theirs.count() > 0) {
      nccl.send(collectives_.library, all.slice(theirs.begin, theirs.count()).raw(),
                static_cast<std::size_t>(theirs.count()) * element, to);
    }
    if (own.count() > 0) {
      nccl.receive(collectives_.library,
                   scratch + static_cast<std::size_t>(from * stride) * element,
                   static_cast<std::size_t>(own.count()) * element, from);
    }
  }
  calls.end();
  if (own.count() == 0) return;
  run(*collectives_.stream,
      RankSum{.parts = Tensor(scratch, all.dtype(), {size(), stride}, context_.device.kind()),
              .own = all.slice(own.begin, own.count()),
              .own_rank = rank(),
              .result = result});
}

void NcclCommunicator::gather(const Tensor& all) {
  const auto piece = [&](int r) {
    const Piece at = pieces_[static_cast<std::size_t>(r)];
    return all.slice(at.begin, at.count());
  };
  NcclLibrary& nccl = *context_.library;
  const Tensor mine = piece(rank());
  if (std::ranges::all_of(pieces_, [&](const Piece& p) { return p.count() == mine.dim(0); })) {
    // Rank 0's piece is where all of them begin.
    if (mine.numel() > 0)
      nccl.all_gather(collectives_.library, mine.raw(), piece(0).raw(), mine.size_bytes());
    return;
  }
  Together calls(nccl);
  for (int i = 1; i < size(); ++i) {
    const int to = (rank() + i) % size(), from = (rank() + size() - i) % size();
    const Tensor theirs = piece(from);
    if (mine.numel() > 0) nccl.send(collectives_.library, mine.raw(), mine.size_bytes(), to);
    if (theirs.numel() > 0)
      nccl.receive(collectives_.library, theirs.raw(), theirs.size_bytes(), from);
  }
  calls.end();
}

Communicator::Started NcclCommunicator::start_gathering(Stream& stream, const Gathering& gathering,
                                                        Ticket ticket) {
  if (!takes(stream, {gathering.all, gathering.mine}))
    return MpiCommunicator::start_gathering(stream, gathering, ticket);
  NcclOperation& operation = begin(stream, ticket);
  operation.enter(collectives_);
  log().started(ticket);
  if (gathering.all.numel() == 0) return end(operation);
  pieces_.clear();
  std::int64_t next = 0;
  for (const std::int64_t count : gathering.counts) {
    pieces_.push_back({next, next + count});
    next += count;
  }
  const Tensor all = flat(gathering.all);
  const Piece own = pieces_[static_cast<std::size_t>(rank())];
  const Tensor place = all.slice(own.begin, own.count());
  if (own.count() > 0 && place.raw() != gathering.mine.raw())
    collectives_.stream->copy(place, flat(gathering.mine));
  gather(all);
  return end(operation);
}

Communicator::Started NcclCommunicator::start_broadcast(Stream& stream, Tensor buffer, int root,
                                                        Ticket ticket) {
  if (!takes(stream, {buffer}))
    return MpiCommunicator::start_broadcast(stream, buffer, root, ticket);
  NcclOperation& operation = begin(stream, ticket);
  operation.enter(collectives_);
  log().started(ticket);
  if (buffer.numel() > 0)
    context_.library->broadcast(collectives_.library, buffer.raw(), buffer.size_bytes(), root);
  return end(operation);
}

Communicator::Started NcclCommunicator::start_all_to_all(Stream& stream, const AllToAll& rows,
                                                         Ticket ticket) {
  if (!takes(stream, {rows.send, rows.receive}))
    return MpiCommunicator::start_all_to_all(stream, rows, ticket);
  NcclOperation& operation = begin(stream, ticket);
  operation.enter(collectives_);
  log().started(ticket);
  const auto rows_of = [](const auto& tensor, std::span<const std::int64_t> counts, int r) {
    const auto before = counts.first(static_cast<std::size_t>(r));
    std::int64_t first = 0;
    for (const std::int64_t count : before) first += count;
    return tensor.slice(first, counts[static_cast<std::size_t>(r)]);
  };
  if (rows.send_rows[static_cast<std::size_t>(rank())] > 0) {
    collectives_.stream->copy(rows_of(rows.receive, rows.receive_rows, rank()),
                              rows_of(rows.send, rows.send_rows, rank()));
  }
  NcclLibrary& nccl = *context_.library;
  Together calls(nccl);
  for (int i = 1; i < size(); ++i) {
    const int to = (rank() + i) % size(), from = (rank() + size() - i) % size();
    if (rows.send_rows[static_cast<std::size_t>(to)] > 0) {
      const ConstTensor sent = rows_of(rows.send, rows.send_rows, to);
      nccl.send(collectives_.library, sent.raw(), sent.size_bytes(), to);
    }
    if (rows.receive_rows[static_cast<std::size_t>(from)] > 0) {
      const Tensor received = rows_of(rows.receive, rows.receive_rows, from);
      nccl.receive(collectives_.library, received.raw(), received.size_bytes(), from);
    }
  }
  calls.end();
  return end(operation);
}

// ---- messages ----------------------------------------------------------------------------------

Communicator::Started NcclCommunicator::start_exchange(Stream& stream,
                                                       std::span<const Outgoing> sends,
                                                       std::span<const Incoming> receives,
                                                       Ticket ticket) {
  bool on_device = true;
  for (const Outgoing& message : sends) on_device &= takes(stream, {message.data});
  for (const Incoming& message : receives) on_device &= takes(stream, {message.data});
  if (!on_device) return MpiCommunicator::start_exchange(stream, sends, receives, ticket);
  NcclOperation& operation = begin(stream, ticket);
  using Way = NcclOperation::Message::Way;
  to_itself_.clear();
  for (const Outgoing& message : sends) {
    if (message.to == rank()) {
      to_itself_.push_back({.from = message.data, .to = {}});
    } else if (message.data.numel() > 0) {
      operation.messages(message.to > rank() ? upwards : downwards)
          .push_back({Way::send, const_cast<void*>(message.data.raw()), message.data.size_bytes(),
                      message.to});
    }
  }
  std::size_t from_itself = 0;
  for (const Incoming& message : receives) {
    if (message.from == rank()) {
      require(from_itself < to_itself_.size(),
              "{}: a rank receives from itself what it sends in the same exchange",
              last_operation());
      to_itself_[from_itself++].to = message.data;
    } else if (message.data.numel() > 0) {
      operation.messages(message.from < rank() ? upwards : downwards)
          .push_back({Way::receive, message.data.raw(), message.data.size_bytes(), message.from});
    }
  }
  require(from_itself == to_itself_.size(),
          "{}: a rank receives from itself what it sends in the same exchange", last_operation());
  if (sends.empty()) return &operation;  // put on a lane where it is waited for
  for (const std::size_t lane : {upwards, downwards}) {
    const bool has_copies = lane == upwards && !to_itself_.empty();
    if (has_copies) {
      operation.enter(messages_[lane]);
      for (const auto& [from, to] : to_itself_) messages_[lane].stream->copy(to, from);
    }
    const auto& messages = operation.messages(lane);
    if (messages.empty()) {
      if (has_copies) operation.leave(messages_[lane]);
      continue;
    }
    // Messages from one rank are received in the order in which they were asked for.
    if (std::ranges::any_of(messages, [](const auto& m) { return m.way == Way::receive; })) {
      for (NcclOperation* const earlier : under_way_)
        if (earlier != &operation) put_on_lane(*earlier, lane);
    }
    put_on_lane(operation, lane);
  }
  if (operation.is_issued()) log().started(ticket);
  return &operation;
}

void NcclCommunicator::issue(NcclOperation& operation) {
  for (const std::size_t lane : {upwards, downwards}) {
    if (operation.messages(lane).empty()) continue;
    for (NcclOperation* const earlier : under_way_) {
      put_on_lane(*earlier, lane);
      if (earlier == &operation) break;
    }
  }
}

void NcclCommunicator::put_on_lane(NcclOperation& operation, std::size_t number) {
  auto& messages = operation.messages(number);
  if (messages.empty()) return;
  NcclLane& lane = messages_[number];
  operation.enter(lane);
  NcclLibrary& nccl = *context_.library;
  Together calls(nccl);
  for (const NcclOperation::Message& message : messages) {
    if (message.way == NcclOperation::Message::Way::send) {
      nccl.send(lane.library, message.data, message.bytes, message.peer);
    } else {
      nccl.receive(lane.library, message.data, message.bytes, message.peer);
    }
  }
  calls.end();
  messages.clear();
  operation.leave(lane);
  log().started(operation.ticket());
}

// ---- the host ----------------------------------------------------------------------------------

void NcclCommunicator::run_barrier(Ticket ticket) {
  settle();
  MpiCommunicator::run_barrier(ticket);
}

void NcclCommunicator::run_host_gathering(std::span<const std::byte> mine, std::span<std::byte> all,
                                          Ticket ticket) {
  settle();
  MpiCommunicator::run_host_gathering(mine, all, ticket);
}

}  // namespace orchard
