#include "comm/mpi_engine.h"

#include <algorithm>
#include <string_view>

#include "kernels/core/error.h"

namespace orchard {
namespace {

// MPI counts are ints: larger messages travel in pieces of this many bytes.
constexpr std::size_t piece_bytes = std::size_t{1} << 30;

template <class Post>
void for_each_piece(std::size_t bytes, const Post& post) {
  for (std::size_t begin = 0; begin < bytes; begin += piece_bytes)
    post(begin, static_cast<int>(std::min(piece_bytes, bytes - begin)));
}

}  // namespace

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{} failed: {}", call, std::string_view(text, static_cast<std::size_t>(length)));
}

void MpiEngine::progress() {
  std::erase_if(active_, [](MpiOperation* operation) { return operation->test(); });
}

void MpiEngine::wait_for(const MpiOperation& operation) {
  while (operation.state_ == MpiOperation::State::in_flight) {
    if (while_waiting_) while_waiting_();
    // Alone, it may sleep inside MPI, which is quicker than looking again and again.
    if (active_.size() == 1 && !while_waiting_) active_.front()->block();
    progress();
  }
}

void MpiOperation::finish() {
  place_.engine->wait_for(*this);
  state_ = State::free;
}

void MpiOperation::send(const std::byte* data, std::size_t bytes, int to, int tag) {
  for_each_piece(bytes, [&](std::size_t begin, int count) {
    check_mpi(MPI_Isend(data + begin, count, MPI_BYTE, to, tag, place_.communicator,
                        &requests_.emplace_back()),
              "MPI_Isend");
  });
}

void MpiOperation::receive(std::byte* data, std::size_t bytes, int from, int tag) {
  for_each_piece(bytes, [&](std::size_t begin, int count) {
    check_mpi(MPI_Irecv(data + begin, count, MPI_BYTE, from, tag, place_.communicator,
                        &requests_.emplace_back()),
              "MPI_Irecv");
  });
}

void MpiOperation::launch(const OperationLog::Ticket& ticket) {
  ticket_ = ticket;
  state_ = State::in_flight;
  place_.log->started(ticket);
  place_.engine->add(*this);
  place_.engine->progress();
}

int MpiOperation::tag_of(const OperationLog::Ticket& ticket, int phase) {
  // Tag 0 belongs to exchanges. MPI promises tags up to 32767.
  return static_cast<int>(1 + 2 * (ticket.sequence % 16'000) + phase);
}

bool MpiOperation::test() {
  for (;;) {
    int all_done = 1;
    check_messages(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &all_done,
                               MPI_STATUSES_IGNORE));
    if (all_done == 0) return false;
    requests_.clear();
    if (next_phase()) continue;
    place_.log->ended(ticket_);
    state_ = State::done;
    return true;
  }
}

void MpiOperation::block() {
  check_messages(
      MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE));
}

// MPI says no more than that one of the messages failed: nearly always a receiver that expected
// fewer bytes.
void MpiOperation::check_messages(int code) const {
  require(code == MPI_SUCCESS,
          "a message of {} failed: the ranks of the group do not call the same operations with "
          "matching sizes",
          place_.log->describe(ticket_));
}

}  // namespace orchard
